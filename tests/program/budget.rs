//! What the verifier has to walk: growth is a reviewed change of this number, not an accident.

use crate::stage::on_stage;

/// Instructions that the verifier may look at: 86,000 on 6.18, which would look at a million.
const BUDGET: u32 = 95_000;

#[test]
fn the_verifier_stays_within_its_budget() {
    let verified =
        on_stage(|stage| stage.datapath.verified_instructions()).expect("a kernel that tells (5.16)");
    assert!(verified <= BUDGET, "{verified} instructions verified, {BUDGET} allowed");
}
