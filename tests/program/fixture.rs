//! A frame, and what has to become of it.

use nat_common::{
    FlowKey, FlowValue, Parsed, Reason,
    flow::Rewrite,
    frame::{Frame as _, SliceFrame},
    next_hop::NextHop,
    parse::{Frames, Kind, parse},
    translate,
};
use nat_tests::{Decoded, Packet, packet::Mac};
use natgw::gateway::network;

use crate::stage::{CLIENT_MAC, LAN_MAC, Link, PUBLISHED_MAC, ROUTER_MAC, Stage, WAN_MAC, on_stage};

/// From `<linux/bpf.h>`.
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;

/// What has to become of a frame.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// Rewritten from its flow to this, and sent on.
    Sent(Vec<u8>),
    /// Rewritten one-to-one to this, and sent on.
    SentStatic(Vec<u8>),
    /// The stack's, untouched.
    Passed,
    /// The daemon's, untouched.
    Punted,
    /// The tc hook's, untouched.
    Stack,
    /// Nobody's.
    Dropped(Reason),
    /// What nat-common says; untouched if it says nothing.
    AsInUserspace,
}

/// A frame, where it comes in, and what has to become of it.
#[derive(Clone, Debug)]
pub struct Fixture {
    pub name: String,
    pub link: Link,
    pub frame: Vec<u8>,
    pub verdict: Verdict,
}

/// A packet that the client sends.
pub fn lan(name: impl Into<String>, packet: Packet) -> Fixture {
    frame(name, Link::Lan, packet.between(CLIENT_MAC, LAN_MAC).build())
}

/// A packet that a client on a virtual link sends.
pub fn tap(name: impl Into<String>, packet: Packet) -> Fixture {
    frame(name, Link::Tap, packet.between(CLIENT_MAC, LAN_MAC).build())
}

/// A packet that the router sends.
pub fn wan(name: impl Into<String>, packet: Packet) -> Fixture {
    frame(name, Link::Wan, packet.between(ROUTER_MAC, WAN_MAC).build())
}

/// Any frame.
pub fn frame(name: impl Into<String>, link: Link, frame: Vec<u8>) -> Fixture {
    Fixture { name: name.into(), link, frame, verdict: Verdict::AsInUserspace }
}

/// A frame of an inside host with an address of its own, and the frame that it becomes: their MACs are filled in.
pub fn outbound_one_to_one(mut came: Vec<u8>, mut leaves: Vec<u8>) -> Fixture {
    came[0..12].copy_from_slice([LAN_MAC, PUBLISHED_MAC].as_flattened());
    leaves[0..12].copy_from_slice([ROUTER_MAC, WAN_MAC].as_flattened());
    Fixture { verdict: Verdict::SentStatic(leaves), ..frame("a piece", Link::Lan, came) }
}

impl Fixture {
    /// It leaves by its flow as `packet`, a hop later.
    pub fn sent(self, packet: Packet) -> Self {
        let macs = if self.link == Link::Wan { (LAN_MAC, CLIENT_MAC) } else { (WAN_MAC, ROUTER_MAC) };
        let sent = self.leaves(packet, macs);
        Self { verdict: Verdict::Sent(sent), ..self }
    }

    /// It leaves by a one-to-one rule as `packet`, a hop later.
    pub fn sent_one_to_one(self, packet: Packet) -> Self {
        let macs = if self.link == Link::Wan { (LAN_MAC, PUBLISHED_MAC) } else { (WAN_MAC, ROUTER_MAC) };
        let sent = self.leaves(packet, macs);
        Self { verdict: Verdict::SentStatic(sent), ..self }
    }

    /// The frame of a packet that leaves, with the trailer that the one that came had.
    fn leaves(&self, packet: Packet, (from, to): (Mac, Mac)) -> Vec<u8> {
        let mut sent = packet.between(from, to).build();
        sent.extend(&self.frame[sent.len().min(self.frame.len())..]);
        sent
    }

    pub fn passed(self) -> Self {
        Self { verdict: Verdict::Passed, ..self }
    }

    pub fn punted(self) -> Self {
        Self { verdict: Verdict::Punted, ..self }
    }

    pub fn left_to_the_stack(self) -> Self {
        Self { verdict: Verdict::Stack, ..self }
    }

    pub fn dropped(self, reason: Reason) -> Self {
        Self { verdict: Verdict::Dropped(reason), ..self }
    }

    /// The frame with `trailer` behind the packet.
    pub fn trailed_by(mut self, trailer: &[u8]) -> Self {
        self.frame.extend(trailer);
        self
    }

    /// Judges the frame; `Err` says what was wrong.
    fn judge(&self, stage: &Stage) -> Result<(), String> {
        let (action, left, moved) = stage.run(self.link, &self.frame);
        let (expected, bytes) = match &self.verdict {
            Verdict::Sent(bytes) => ((XDP_REDIRECT, Some(Reason::Translated)), bytes),
            Verdict::SentStatic(bytes) => ((XDP_REDIRECT, Some(Reason::TranslatedStatic)), bytes),
            Verdict::Passed => ((XDP_PASS, Some(Reason::Passed)), &self.frame),
            Verdict::Punted => ((XDP_REDIRECT, Some(Reason::Punted)), &self.frame),
            Verdict::Stack => ((XDP_PASS, None), &self.frame),
            // Nobody sees it any more.
            Verdict::Dropped(reason) => ((XDP_DROP, Some(*reason)), &left),
            Verdict::AsInUserspace => return self.compare(stage, action, &left, &moved),
        };
        let moved_wanted: Vec<_> = expected.1.map(|reason| (reason, 1)).into_iter().collect();
        if (action, &moved) != (expected.0, &moved_wanted) {
            return Err(format!("action {action} counted as {moved:?}, wanted {expected:?}"));
        }
        same(&left, bytes, "the program", "the packet builder")?;
        match &self.verdict {
            Verdict::Sent(_) | Verdict::SentStatic(_) => {
                let in_userspace =
                    self.in_userspace(stage, Some(&left)).map_err(|reason| format!("{reason:?}"))?;
                same(&left, &in_userspace.unwrap_or_default(), "the program", "nat-common")?;
                let right = |frame: &[u8]| Decoded::parse(frame).checksums_valid();
                if right(&self.frame).is_ok() { right(&left) } else { Ok(()) }
            }
            Verdict::Dropped(reason) => match self.in_userspace(stage, None) {
                Err(other) if other != *reason => Err(format!("nat-common says {other:?}")),
                Ok(_) if is_of_the_parser_alone(*reason) => Err("nat-common finds nothing wrong".to_owned()),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Holds what the program did against nat-common.
    fn compare(
        &self,
        stage: &Stage,
        action: u32,
        left: &[u8],
        moved: &[(Reason, u64)],
    ) -> Result<(), String> {
        let counted = |reason: Reason| moved == [(reason, 1)];
        match self.in_userspace(stage, None) {
            Err(reason) if action == XDP_DROP && counted(reason) => Ok(()),
            // What is not addressed to the gateway is not looked at.
            Err(_) if counted(Reason::Passed) && self.frame[0..6] != self.link.mac() => Ok(()),
            Err(reason) => Err(format!("action {action} counted as {moved:?}, nat-common says {reason:?}")),
            Ok(Some(bytes)) if counted(Reason::Translated) => same(left, &bytes, "the program", "nat-common"),
            Ok(_) if counted(Reason::Translated) => Err("translated without a flow".to_owned()),
            Ok(_) => {
                let once = moved.iter().map(|(_, packets)| packets).sum::<u64>() <= 1;
                if !once {
                    return Err(format!("counted as {moved:?}"));
                }
                let rewritten = counted(Reason::TranslatedStatic) || action == XDP_DROP;
                if rewritten { Ok(()) } else { same(left, &self.frame, "left", "as it came") }
            }
        }
    }

    /// What nat-common makes of the frame: `Err` if it is bad, `None` if no flow covers it. With `like`, what the
    /// one-to-one rule makes of it that gave that frame its addresses.
    fn in_userspace(&self, stage: &Stage, like: Option<&[u8]>) -> Result<Option<Vec<u8>>, Reason> {
        let mut bytes = self.frame.clone();
        let frame = SliceFrame::new(&mut bytes).expect("a vector begins at an even address");
        let parsed = match parse(&frame, self.link.realm()) {
            Frames::Ipv4(parsed) => parsed,
            Frames::Other => return Ok(None),
            Frames::Bad(reason) => return Err(reason),
        };
        let is_static = matches!(self.verdict, Verdict::SentStatic(_));
        let (value, hop) = match (like, stage.flow(&parsed.key)) {
            (Some(like), None) if is_static => one_to_one(&parsed, like),
            (_, Some((value, hop))) if matches!(parsed.kind, Kind::Ported | Kind::Portless) => (*value, *hop),
            _ => return Ok(None),
        };
        if parsed.ttl <= 1 {
            return Ok(None);
        }
        let transport = frame.skip(parsed.transport);
        let rewritten = match parsed.kind {
            Kind::Ported => translate::rewrite(&frame, &transport, &parsed, &value),
            Kind::FirstFragment => translate::rewrite_addresses(&frame, parsed.network, &value)
                .and_then(|()| translate::adjust_transport(&transport, parsed.key.protocol, &value)),
            _ => translate::rewrite_addresses(&frame, parsed.network, &value),
        };
        rewritten
            .and_then(|()| translate::decrement_ttl(&frame, parsed.network))
            .and_then(|()| translate::address_frame(&frame, &hop))
            .ok_or(Reason::DropTruncated)?;
        Ok(Some(bytes))
    }
}

/// The flow entry that a one-to-one rule stands for, with the addresses and MACs of a frame that it sent.
fn one_to_one(parsed: &Parsed, like: &[u8]) -> (FlowValue, NextHop) {
    let sent = Decoded::parse(like);
    let FlowKey { source_port, destination_port, .. } = parsed.key;
    let [source, destination] = [sent.ip().source, sent.ip().destination].map(network);
    let rewrite = Rewrite { source, destination, source_port, destination_port };
    let value = FlowValue::translate(&parsed.key, &rewrite, 0);
    (value, NextHop { destination: sent.to, source: sent.from, ..NextHop::default() })
}

/// Whether only a frame's own bytes give this reason. (A fragment may also be too short for a one-to-one rule.)
fn is_of_the_parser_alone(reason: Reason) -> bool {
    use Reason::{
        DropBadChecksum, DropBadHeader, DropBadOption, DropBadTransport, DropSourceRoute, DropTruncated,
    };
    matches!(
        reason,
        DropBadChecksum | DropBadHeader | DropBadOption | DropBadTransport | DropSourceRoute | DropTruncated
    )
}

fn same(left: &[u8], right: &[u8], whose: &str, other: &str) -> Result<(), String> {
    if left == right {
        return Ok(());
    }
    Err(format!("{whose}:\n    {}\n  {other}:\n    {}", hex(left), hex(right)))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// Judges every fixture, and tells all that failed.
pub fn check(fixtures: Vec<Fixture>) {
    assert_right(&on_stage(move |stage| judge_all(stage, &fixtures)));
}

/// Judges every fixture. Returns what was wrong.
pub fn judge_all(stage: &Stage, fixtures: &[Fixture]) -> Vec<String> {
    let judge = |fixture: &Fixture| {
        let wrong = fixture.judge(stage).err()?;
        Some(format!("{} ({:?}): {wrong}\n  of {}", fixture.name, fixture.link, hex(&fixture.frame)))
    };
    fixtures.iter().filter_map(judge).collect()
}

/// Nothing was wrong.
pub fn assert_right(failures: &[String]) {
    assert!(failures.is_empty(), "{} failed:\n{}", failures.len(), failures.join("\n"));
}
