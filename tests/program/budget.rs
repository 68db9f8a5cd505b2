//! What the verifier has to walk: growth is a reviewed change of this number, not an accident.

use crate::stage::on_stage;

/// Instructions that the verifier may look at, in all programs: 100,000 on 6.18, which would look at a million in each. They
/// are most of what a start takes.
const BUDGET: u32 = 110_000;
/// Likewise for the XDP program that is in its place while somebody traces: 59,000.
const TRACED_BUDGET: u32 = 65_000;

#[test]
fn the_verifier_stays_within_its_budget() {
    let verified =
        on_stage(|stage| stage.datapath.verified_instructions()).expect("a kernel that tells (5.16)");
    assert!(verified <= BUDGET, "{verified} instructions verified, {BUDGET} allowed");
}

/// The same for the program that is in its place while somebody traces: all that it adds is around the other.
#[test]
fn the_tracing_program_stays_within_its_budget() {
    let verified = on_stage(|stage| {
        let traced = stage.datapath.beside().load();
        let traced = traced.unwrap_or_else(|error| panic!("load the tracing programs: {error}"));
        traced.verified_instructions()
    });
    let verified = verified.expect("a kernel that tells (5.16)");
    assert!(verified <= TRACED_BUDGET, "{verified} instructions verified, {TRACED_BUDGET} allowed");
}
