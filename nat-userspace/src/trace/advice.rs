//! What to do about a drop.

use nat_common::Reason;

/// What to do where packets are dropped for a reason; empty where nothing was counted as dropped.
pub const fn advice(reason: Reason) -> &'static str {
    match reason {
        Reason::Translated
        | Reason::TranslatedStatic
        | Reason::Passed
        | Reason::Punted
        | Reason::TranslatedByStack
        | Reason::Relayed
        | Reason::EventLost => "",
        Reason::DropNoDaemon => "see whether `natgw run` is running, and how busy it is",
        Reason::DropTruncated | Reason::DropBadHeader | Reason::DropBadTransport => {
            "capture it with `natgw capture` and look at its sender"
        }
        Reason::DropBadChecksum => "look at the sender's NIC, cable and checksum offload",
        Reason::DropSourceRoute | Reason::DropBadOption => "have its sender leave the option out",
        Reason::DropMartian => "look at the addresses of its sender",
        Reason::DropUninvited => "if it is wanted, add a [[forward]], or a [[snat]] with to = \"none\"",
        Reason::DropUnsolicited => "if it is wanted, add a [[forward]] for this port, or open the socket",
        Reason::DropFiltered => {
            "have the inside host send to this remote first, or set filtering = \"endpoint-independent\" in the rule"
        }
        Reason::DropNoSession => {
            "the session has expired or went another way: see [timeouts], and `ip route get`"
        }
        Reason::DropPortsExhausted => {
            "see `natgw pool list`; add addresses to `to`, or set mapping = \"endpoint-dependent\""
        }
        Reason::DropSessionsFull => "raise [limits] sessions and restart natgw",
        Reason::DropSourceLimit => "see [limits] sessions_per_source, new_per_second_per_source and sources",
        Reason::DropNoRoute => "see `ip route get DESTINATION` and add the route",
        Reason::DropNoNeighbour => {
            "see `ip neighbour show`: is the host up, and the right address on this link?"
        }
        Reason::DropHoldFull => "see `ip neighbour show`: more wait for a neighbour than may",
        Reason::DropTtl => "look for a routing loop with traceroute",
        Reason::DropTooBig => "see the MTU of the way out, or set mss_clamp on the interface",
        Reason::DropFragment => {
            "look for a device on the way that drops fragments, or lower the sender's MTU"
        }
        Reason::DropIcmpError => "none, unless the session it is about ended too early: see [timeouts]",
        Reason::DropProtocol => {
            "exempt the protocol by a [[snat]] with to = \"none\", or give the host a [[static]]"
        }
        Reason::DropSpoofed => {
            "if the source is real, add the route to its network: ip route add NETWORK via INNER-ROUTER"
        }
        Reason::DropNoAddress => "see `ip address show`: the way out has no address to translate to",
        Reason::DropTransmit => "see `ip -s link` of the way out",
        Reason::DropTable => "see the log: the flow table has no place",
        Reason::DropOwnClash => "keep sysctl net.ipv4.ip_local_port_range and `ports` of the rule apart",
        Reason::DropNoServer => "see `natgw service list`",
        Reason::DropLoop => "give the server the virtual server's address: see method in [[service]]",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_something_to_do_about_every_drop() {
        for &reason in Reason::ALL {
            assert_eq!(advice(reason).is_empty(), !reason.is_drop(), "{reason:?}");
        }
    }
}
