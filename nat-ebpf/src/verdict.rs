//! What becomes of a frame.

use nat_common::Reason;

/// What is to be done with a frame.
pub enum Verdict {
    /// To the gateway's own stack, untouched.
    Pass,
    /// Likewise: the daemon has judged it.
    Injected,
    /// To the daemon, untouched.
    Punt,
    /// By the rule at this position, which translates.
    Rule(u32),
    /// Likewise: its rule, and what its host is granted, are remembered.
    Known,
    /// Translated and handed to the way out: what the redirect helper returned, what it was counted under, and the
    /// interface that it leaves by.
    Sent(u32, Reason, u32),
    /// To the tc hook, untouched: it will find the same flow.
    Stack,
    /// Nowhere.
    Drop(Reason),
}
