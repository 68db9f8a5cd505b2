//! The qdisc that filters need before Linux 6.6, taken away again once there is none on it.

use std::io;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcHandle, TcMessage};
use netlink_sys::protocols::NETLINK_ROUTE;

use super::netlink::Channel;

/// Both hooks of a clsact qdisc.
const HOOKS: [u16; 2] = [TcHandle::MIN_INGRESS, TcHandle::MIN_EGRESS];

/// Removes an interface's clsact qdisc, unless it has filters.
pub fn remove_clsact_without_filters(ifindex: u32) -> io::Result<()> {
    let mut channel = Channel::open(NETLINK_ROUTE)?;
    let index = i32::try_from(ifindex).map_err(io::Error::other)?;
    let mut filters = 0;
    for minor in HOOKS {
        let mut question = TcMessage::with_index(index);
        question.header.parent = TcHandle { minor, ..TcHandle::CLSACT };
        channel.dump(RouteNetlinkMessage::GetTrafficFilter(question), |_| {
            filters += 1;
            Ok(())
        })?;
    }
    if filters > 0 {
        return Ok(());
    }
    let mut qdisc = TcMessage::with_index(index);
    qdisc.header.parent = TcHandle::CLSACT;
    qdisc.header.handle = TcHandle { minor: 0, ..TcHandle::CLSACT };
    channel.execute(RouteNetlinkMessage::DelQueueDiscipline(qdisc), 0)
}
