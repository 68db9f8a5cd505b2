//! What the XDP side of an interface can do, from the kernel's `netdev` generic netlink family (Linux 6.3).

use std::{io, os::fd::AsFd as _, os::fd::BorrowedFd};

use netlink_packet_core::{
    DecodeError, NetlinkSerializable, NlasIterator, parse_string, parse_u16, parse_u32, parse_u64,
};
use netlink_sys::protocols::NETLINK_GENERIC;
use rustix::io::Errno;

use super::{
    HostEvent,
    netlink::{Channel, Notifications, is},
};

/// What XDP can do with an interface as it is set up now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(clippy::struct_excessive_bools, reason = "independent capabilities, as the kernel lists them")]
pub struct XdpFeatures {
    /// The driver runs XDP programs itself (native mode).
    pub basic: bool,
    /// A native program may redirect what it receives.
    pub redirect: bool,
    /// Frames redirected to the interface are sent. A veth says so while its peer has NAPI (GRO or an XDP
    /// program): without, they vanish.
    pub ndo_xmit: bool,
    /// `AF_XDP` sockets may share their memory with the driver.
    pub xsk_zerocopy: bool,
}

/// The `netdev` family of this kernel: its number and an ear for its notifications.
pub(super) struct Netdev {
    family: u16,
    requests: Channel,
    monitor: Channel,
}

impl Netdev {
    /// Finds the family; none on a kernel before 6.3.
    pub(super) fn open() -> io::Result<Option<Self>> {
        let mut requests = Channel::open(NETLINK_GENERIC)?;
        let question = Request::new(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_NAME, b"netdev\0");
        let (mut family, mut group) = (0, None);
        let found = requests.query(question, |message| {
            for attribute in attributes(message.payload) {
                let attribute = attribute?;
                match attribute.kind() {
                    CTRL_ATTR_FAMILY_ID => family = parse_u16(attribute.value())?,
                    CTRL_ATTR_MCAST_GROUPS => group = management_group(attribute.value())?,
                    _ => {}
                }
            }
            Ok(())
        });
        match (found, group) {
            (Ok(()), Some(group)) => {
                let monitor = Channel::subscribe(NETLINK_GENERIC, &[group])?;
                Ok(Some(Self { family, requests, monitor }))
            }
            (Ok(()), None) => Ok(None),
            (Err(error), _) if is(&error, Errno::NOENT) => Ok(None),
            (Err(error), _) => Err(error),
        }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.monitor.socket().as_fd()
    }

    /// Asks for an interface's features.
    pub(super) fn features(&mut self, ifindex: u32) -> io::Result<XdpFeatures> {
        let question =
            Request::new(self.family, NETDEV_CMD_DEV_GET, NETDEV_A_DEV_IFINDEX, &ifindex.to_ne_bytes());
        let mut bits = 0;
        self.requests.query(question, |message| {
            for attribute in attributes(message.payload) {
                let attribute = attribute?;
                if attribute.kind() == NETDEV_A_DEV_XDP_FEATURES {
                    bits = parse_u64(attribute.value())?;
                }
            }
            Ok(())
        })?;
        Ok(XdpFeatures {
            basic: bits & NETDEV_XDP_ACT_BASIC != 0,
            redirect: bits & NETDEV_XDP_ACT_REDIRECT != 0,
            ndo_xmit: bits & NETDEV_XDP_ACT_NDO_XMIT != 0,
            xsk_zerocopy: bits & NETDEV_XDP_ACT_XSK_ZEROCOPY != 0,
        })
    }

    /// Reads the notifications that wait.
    pub(super) fn poll(&mut self, events: &mut Vec<HostEvent>) -> io::Result<()> {
        let outcome = self.monitor.notifications(|message| {
            if message.payload.first() != Some(&NETDEV_CMD_DEV_CHANGE_NTF) {
                return;
            }
            let ifindex = attributes(message.payload)
                .filter_map(Result::ok)
                .find(|attribute| attribute.kind() == NETDEV_A_DEV_IFINDEX)
                .and_then(|attribute| parse_u32(attribute.value()).ok());
            events.extend(ifindex.map(HostEvent::XdpFeaturesChanged));
        })?;
        if let Notifications::Lost = outcome {
            events.push(HostEvent::Resynced);
        }
        Ok(())
    }
}

/// A generic netlink request with one attribute.
struct Request {
    family: u16,
    bytes: Vec<u8>,
}

impl Request {
    fn new(family: u16, command: u8, attribute: u16, value: &[u8]) -> Self {
        let length = u16::try_from(ATTRIBUTE_HEADER + value.len()).unwrap_or(u16::MAX);
        let mut bytes = vec![command, GENL_VERSION, 0, 0];
        bytes.extend(length.to_ne_bytes());
        bytes.extend(attribute.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        Self { family, bytes }
    }
}

impl NetlinkSerializable for Request {
    fn message_type(&self) -> u16 {
        self.family
    }

    fn buffer_len(&self) -> usize {
        self.bytes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.bytes);
    }
}

/// The attributes behind a generic netlink header.
fn attributes(payload: &[u8]) -> NlasIterator<&[u8]> {
    NlasIterator::new(payload.get(GENL_HEADER..).unwrap_or_default())
}

/// The number of the group `mgmt` in a list of multicast groups.
fn management_group(groups: &[u8]) -> Result<Option<u32>, DecodeError> {
    for group in NlasIterator::new(groups) {
        let (mut name, mut id) = (String::new(), 0);
        for attribute in NlasIterator::new(group?.value()) {
            let attribute = attribute?;
            match attribute.kind() {
                CTRL_ATTR_MCAST_GRP_NAME => name = parse_string(attribute.value())?,
                CTRL_ATTR_MCAST_GRP_ID => id = parse_u32(attribute.value())?,
                _ => {}
            }
        }
        if name == "mgmt" {
            return Ok(Some(id));
        }
    }
    Ok(None)
}

/// linux/genetlink.h
const GENL_ID_CTRL: u16 = 16;
const GENL_HEADER: usize = 4;
const GENL_VERSION: u8 = 1;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const CTRL_ATTR_MCAST_GROUPS: u16 = 7;
const CTRL_ATTR_MCAST_GRP_NAME: u16 = 1;
const CTRL_ATTR_MCAST_GRP_ID: u16 = 2;
const ATTRIBUTE_HEADER: usize = 4;

/// linux/netdev.h
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_CMD_DEV_CHANGE_NTF: u8 = 4;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NETDEV_XDP_ACT_BASIC: u64 = 1;
const NETDEV_XDP_ACT_REDIRECT: u64 = 2;
const NETDEV_XDP_ACT_NDO_XMIT: u64 = 4;
const NETDEV_XDP_ACT_XSK_ZEROCOPY: u64 = 8;
