//! The only randomness of a group: SplitMix64 from the seed in [`Config`](crate::Config).

/// Spreads election timeouts. Not for secrets.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    /// `id` keeps the peers of a group apart even where they were given the same seed.
    pub fn new(seed: u64, id: u64) -> Rng {
        Rng(seed ^ id.wrapping_mul(0xD6E8_FEB8_6659_FD93))
    }

    /// Evenly (to within 2⁻³²) from `0..bound`.
    pub fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        ((u64::from((z >> 32) as u32) * u64::from(bound)) >> 32) as u32
    }
}
