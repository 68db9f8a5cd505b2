//! Settings that take one word out of a few, and those words.

/// The side of the gateway an interface belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Sources are translated.
    Inside,
    /// Destinations are translated.
    Outside,
}

impl Side {
    /// The words of the file and what they mean.
    pub const WORDS: [(&'static str, Self); 2] = [("inside", Self::Inside), ("outside", Self::Outside)];

    /// The word of the file for it.
    pub const fn name(self) -> &'static str {
        Self::WORDS[self as usize].0
    }
}

/// How the XDP program is attached to an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttachMode {
    /// In the driver where it can, else generic with a warning.
    #[default]
    Auto,
    /// In the driver or not at all.
    Native,
    /// In the stack, after the kernel has built its socket buffer.
    Generic,
}

impl AttachMode {
    /// The words of the file and what they mean.
    pub const WORDS: [(&'static str, Self); 3] =
        [("auto", Self::Auto), ("native", Self::Native), ("generic", Self::Generic)];

    /// The word of the file for it.
    pub const fn name(self) -> &'static str {
        Self::WORDS[self as usize].0
    }
}

/// When two flows of one inside endpoint share an external port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mapping {
    /// Always: one external port an inside endpoint.
    #[default]
    EndpointIndependent,
    /// When they go to the same remote address.
    AddressDependent,
    /// Only when remote address and port are the same; unlike remotes share one external port.
    EndpointDependent,
}

impl Mapping {
    /// The words of the file and what they mean.
    pub const WORDS: [(&'static str, Self); 3] = [
        ("endpoint-independent", Self::EndpointIndependent),
        ("address-dependent", Self::AddressDependent),
        ("endpoint-dependent", Self::EndpointDependent),
    ];

    /// The word of the file for it.
    pub const fn name(self) -> &'static str {
        Self::WORDS[self as usize].0
    }
}

/// Which remotes may send to an external port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Filtering {
    /// All.
    EndpointIndependent,
    /// Addresses the inside host has sent to.
    #[default]
    AddressDependent,
    /// Addresses and ports the inside host has sent to.
    AddressAndPortDependent,
}

impl Filtering {
    /// The words of the file and what they mean.
    pub const WORDS: [(&'static str, Self); 3] = [
        ("endpoint-independent", Self::EndpointIndependent),
        ("address-dependent", Self::AddressDependent),
        ("address-and-port-dependent", Self::AddressAndPortDependent),
    ];

    /// The word of the file for it.
    pub const fn name(self) -> &'static str {
        Self::WORDS[self as usize].0
    }
}

/// How an external address is chosen from several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pooling {
    /// One address a host; when it has no port left, the flow is refused.
    #[default]
    Paired,
    /// One address a host as long as it has ports, then another.
    Soft,
    /// Any address for any flow.
    Arbitrary,
    /// An address of a host's own while it has sessions, with its ports as they are (RFC 3022
    /// section 2.1); when none is free, the flow is refused.
    Exclusive,
    /// The same, but the last address is shared by the hosts that come too late for their own.
    ExclusiveThenShared,
}

impl Pooling {
    /// The words of the file and what they mean.
    pub const WORDS: [(&'static str, Self); 5] = [
        ("paired", Self::Paired),
        ("soft", Self::Soft),
        ("arbitrary", Self::Arbitrary),
        ("exclusive", Self::Exclusive),
        ("exclusive-then-shared", Self::ExclusiveThenShared),
    ];

    /// The word of the file for it.
    pub const fn name(self) -> &'static str {
        Self::WORDS[self as usize].0
    }
}

/// How a virtual server's packets reach a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// The destination is translated; answers come back by way of the gateway.
    #[default]
    Nat,
    /// Only the frame's destination changes; the server has the external address, too, and answers by itself.
    DirectRouting,
    /// The packet travels inside another (RFC 2003); the server unpacks it and answers by itself.
    Tunnel,
}

impl Method {
    /// The words of the file and what they mean.
    pub const WORDS: [(&'static str, Self); 3] =
        [("nat", Self::Nat), ("direct-routing", Self::DirectRouting), ("tunnel", Self::Tunnel)];

    /// The word of the file for it.
    pub const fn name(self) -> &'static str {
        Self::WORDS[self as usize].0
    }
}

/// How a virtual server chooses a server for a new connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scheduler {
    /// One after the other.
    #[default]
    RoundRobin,
    /// One after the other, in proportion to their weights, evenly mixed.
    WeightedRoundRobin,
    /// The one with the fewest connections.
    LeastConnections,
    /// The one with the fewest connections for its weight.
    WeightedLeastConnections,
    /// By the client's address alone.
    SourceHash,
    /// By the client's address and port, from a table that changes little when servers do.
    Maglev,
}

impl Scheduler {
    /// The words of the file and what they mean.
    pub const WORDS: [(&'static str, Self); 6] = [
        ("round-robin", Self::RoundRobin),
        ("weighted-round-robin", Self::WeightedRoundRobin),
        ("least-connections", Self::LeastConnections),
        ("weighted-least-connections", Self::WeightedLeastConnections),
        ("source-hash", Self::SourceHash),
        ("maglev", Self::Maglev),
    ];

    /// The word of the file for it.
    pub const fn name(self) -> &'static str {
        Self::WORDS[self as usize].0
    }
}

/// What a health check asks of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CheckKind {
    /// To take a connection.
    #[default]
    Tcp,
    /// To answer a GET.
    Http,
    /// To answer an echo request.
    Ping,
    /// Nothing: it always counts as up.
    None,
}

impl CheckKind {
    /// The words of the file and what they mean.
    pub const WORDS: [(&'static str, Self); 4] =
        [("tcp", Self::Tcp), ("http", Self::Http), ("ping", Self::Ping), ("none", Self::None)];

    /// The word of the file for it.
    pub const fn name(self) -> &'static str {
        Self::WORDS[self as usize].0
    }
}

/// What becomes of a packet that matches nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unmatched {
    /// It goes to the gateway's own stack.
    #[default]
    Pass,
    /// It is dropped and counted.
    Drop,
}

impl Unmatched {
    /// The words of the file and what they mean.
    pub const WORDS: [(&'static str, Self); 2] = [("pass", Self::Pass), ("drop", Self::Drop)];

    /// The word of the file for it.
    pub const fn name(self) -> &'static str {
        Self::WORDS[self as usize].0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `name` takes a variant's number for its place among the words.
    #[test]
    fn words_stand_in_the_order_of_the_variants() {
        assert!(Side::WORDS.iter().all(|(word, side)| side.name() == *word));
        assert!(AttachMode::WORDS.iter().all(|(word, mode)| mode.name() == *word));
        assert!(Mapping::WORDS.iter().all(|(word, mapping)| mapping.name() == *word));
        assert!(Filtering::WORDS.iter().all(|(word, filtering)| filtering.name() == *word));
        assert!(Pooling::WORDS.iter().all(|(word, pooling)| pooling.name() == *word));
        assert!(Method::WORDS.iter().all(|(word, method)| method.name() == *word));
        assert!(Scheduler::WORDS.iter().all(|(word, scheduler)| scheduler.name() == *word));
        assert!(CheckKind::WORDS.iter().all(|(word, kind)| kind.name() == *word));
        assert!(Unmatched::WORDS.iter().all(|(word, unmatched)| unmatched.name() == *word));
    }
}
