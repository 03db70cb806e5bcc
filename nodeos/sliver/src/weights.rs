//! CPU weights by which every guarantee is kept. Pure.
//!
//! The kernel divides time by weight among those who want it, first between the node's services and all slivers, then among
//! these. So a guarantee is a weight that suffices while everybody wants time: with *G* guaranteed of *C* there is, slivers
//! together get *C'*, halfway between *G* and *C* but at most nine tenths of *C*. Of that each is entitled to its guarantee and, by its share,
//! to a part of the *C' − G* which nobody is guaranteed. Weights in proportion to these sums are, divided by a constant, `share`
//! for slivers without a guarantee and `share + guarantee × S / (C' − G)` for the others, where *S* is the sum of shares.
//!
//! Whoever does not want its time leaves it to the others in proportion to their weights, so nobody gets less than its guarantee.
//! Weights are made for those who have a guarantee or have lately wanted time: for all that run, a guarantee would be so much
//! heavier than what others are left that these starved. Who begins to want time dilutes guarantees until weights are made
//! again.
//!
//! What is not exact: weights are whole numbers of 1 to 10,000, so that beside a great guarantee few steps are left to tell shares
//! apart, and *n* competitors with small shares dilute a guarantee by up to *n* in 5,000 parts; and between CPUs the kernel balances by
//! moving threads, of which a sliver needs as many as its guarantee has CPUs.

/// The weight of the node's services, as PID 1 sets it.
const NODE: u64 = 1000;
/// That of all slivers while none that runs has a guarantee; the kernel's default.
const SLIVERS: u32 = 100;
/// The greatest weight there is.
const MAX: u64 = 10_000;

/// What a sliver's specification says of CPU time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Claim {
    /// Its share of what is not guaranteed.
    pub(crate) share: u32,
    /// Its guarantee in per cent of one CPU.
    pub(crate) guarantee: u32,
}

/// The weights of all slivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Weights {
    /// That of the group which has them all.
    pub(crate) group: u32,
    /// *S*.
    shares: u64,
    /// *C' − G*, in per cent of one CPU.
    rest: u64,
    /// Weights are divided by two so often, so that the greatest is one that exists.
    halvings: u32,
}

impl Weights {
    /// Weights for a node with so many CPUs and slivers with these claims to compete.
    pub(crate) fn new(cpus: u32, claims: &[Claim]) -> Self {
        // Per cent times 20, so that half of a per cent and a tenth of all are whole numbers.
        let all = 2000 * u64::from(cpus.max(1));
        let guaranteed = 20 * claims.iter().map(|claim| u64::from(claim.guarantee)).sum::<u64>();
        let slivers = ((all + guaranteed) / 2).min(all / 10 * 9);
        // More than is admitted may be guaranteed if a CPU went away.
        let rest = slivers.saturating_sub(guaranteed).max(all / 10) / 20;
        let group = if guaranteed == 0 { SLIVERS.into() } else { (NODE * slivers).div_ceil(all - slivers) };
        let shares = claims.iter().map(|claim| u64::from(claim.share)).sum();
        let mut weights = Self { group: group.min(MAX) as u32, shares, rest: rest.max(1), halvings: 0 };
        let greatest = claims.iter().map(|claim| weights.exact(*claim)).max().unwrap_or(0);
        while greatest >> weights.halvings > MAX {
            weights.halvings += 1;
        }
        weights
    }

    fn exact(&self, Claim { share, guarantee }: Claim) -> u64 {
        u64::from(share) + (u64::from(guarantee) * self.shares).div_ceil(self.rest)
    }

    /// The weight of a sliver with this claim.
    pub(crate) fn of(&self, claim: Claim) -> u32 {
        (self.exact(claim) >> self.halvings).clamp(1, MAX) as u32
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn claim((share, guarantee): (u32, u32)) -> Claim {
        Claim { share, guarantee }
    }

    #[test]
    fn weights() {
        let check = |cpus, claims: &[(u32, u32)], group, each: &[u32]| {
            let claims: Vec<_> = claims.iter().copied().map(claim).collect();
            let weights = Weights::new(cpus, &claims);
            assert_eq!(weights.group, group, "{claims:?}");
            assert_eq!(claims.iter().map(|claim| weights.of(*claim)).collect::<Vec<_>>(), each, "{claims:?}");
        };
        check(1, &[], 100, &[]);
        check(1, &[(100, 0), (7, 0)], 100, &[100, 7]);
        // Slivers have 75 of 100; 25 of these are divided by share, half each: 62.5 and 12.5.
        check(1, &[(100, 50), (100, 0)], 3000, &[500, 100]);
        // At most nine tenths.
        check(1, &[(100, 80), (100, 0)], 9000, &[1700, 100]);
        check(4, &[(100, 100), (100, 0)], 1667, &[234, 100]);
        // Too large to exist: all are halved.
        check(1, &[(10_000, 80), (10_000, 0), (1, 0)], 9000, &[5312, 312, 1]);
    }

    proptest! {
        #[test]
        fn guarantees_hold_whoever_competes(
            cpus in 1..64_u32,
            guarantees in prop::collection::vec((1..=10_000_u32, 1..=100_u32), 1..20),
            others in prop::collection::vec(1..=10_000_u32, 0..100),
            active in prop::collection::vec(any::<bool>(), 120),
            node in any::<bool>(),
        ) {
            let all = f64::from(cpus) * 100.0;
            let mut left = 80 * cpus;
            let mut claims = Vec::new();
            for (share, guarantee) in guarantees {
                let guarantee = guarantee.min(left);
                left -= guarantee;
                claims.push(Claim { share, guarantee });
            }
            claims.extend(others.into_iter().map(|share| Claim { share, guarantee: 0 }));
            let weights = Weights::new(cpus, &claims);
            let slivers = if node { f64::from(weights.group) / f64::from(weights.group + 1000) } else { 1.0 };
            let competing: Vec<_> = claims.iter().zip(active).filter(|(_, active)| *active).map(|(c, _)| *c).collect();
            let sum: f64 = competing.iter().map(|claim| f64::from(weights.of(*claim))).sum();
            for claim in &competing {
                let got = all * slivers * f64::from(weights.of(*claim)) / sum;
                let error = (claims.len() + 1) as f64 / 5000.0;
                prop_assert!(got >= f64::from(claim.guarantee) * (1.0 - error), "{claim:?} got {got}");
            }
        }

        #[test]
        fn what_is_not_guaranteed_is_divided_by_share(shares in prop::collection::vec(1000..=10_000_u32, 2..20), guarantee in 0..=80_u32) {
            let mut claims: Vec<_> = shares.into_iter().map(|share| Claim { share, guarantee: 0 }).collect();
            claims[0].guarantee = guarantee;
            let weights = Weights::new(1, &claims);
            for pair in claims[1..].windows(2) {
                let ratio = |a: u32, b: u32| f64::from(a) / f64::from(b);
                let (first, second) = (weights.of(pair[0]), weights.of(pair[1]));
                let expect = ratio(pair[0].share, pair[1].share);
                let got = ratio(first, second);
                // Beside a great guarantee the others' weights are small, and each is a whole number.
                let error = 1.0 / f64::from(first) + 1.0 / f64::from(second);
                prop_assert!((got / expect - 1.0).abs() <= error, "{got} instead of {expect}, by {first} and {second}");
            }
        }
    }
}
