//! The short form of `cargo xtask torture`.

use std::time::Duration;

use nat_tests::torture::{Options, torture};

/// Whatever the machine is busy with: no packet is lost, nothing grows. How quick it is, is for longer runs to say.
#[test]
fn torture_for_a_short_time() {
    let report = torture(Options { time: Duration::from_secs(20), seed: 7 }, &mut |line| println!("{line}"));
    println!("{report}");
    assert_eq!(report.failures(), [""; 0]);
}
