//! Flows as traffic has them: few carry most of it.

use nat_bench_ebpf::QUANTILES;

/// The flow, by rank, at which each quantile of frames begins: the n-th has the n-th part of the first's frames.
pub(crate) fn quantiles(flows: u32) -> Vec<u32> {
    let total: f64 = (1..=flows).map(|rank| 1.0 / f64::from(rank)).sum();
    let mut bounds = Vec::new();
    let mut reached = 0.0;
    let mut rank = 0;
    for quantile in 0..QUANTILES {
        let wanted = total * f64::from(quantile) / f64::from(QUANTILES - 1);
        while rank < flows && reached + 1.0 / f64::from(rank + 1) <= wanted {
            rank += 1;
            reached += 1.0 / f64::from(rank);
        }
        bounds.push(rank);
    }
    bounds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_flow_has_its_share() {
        let bounds = quantiles(1 << 16);
        // H(65536) = 11.667: 4096 / 11.667 = 351 quantiles.
        let first = bounds.iter().filter(|bound| **bound == 0).count();
        assert!((351..=352).contains(&first), "{first}");
        assert!(bounds.is_sorted());
        assert!(bounds.last().is_some_and(|last| (65_535..=65_536).contains(last)));
    }
}
