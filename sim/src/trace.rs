//! What happened: as a digest always, as text when wanted.
//!
//! A failing seed is run again with text: determinism makes the second run the same as the first.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasherDefault, Hasher},
};

const KEPT: usize = 400;

/// See the module.
#[derive(Debug)]
pub struct Trace {
    digest: u64,
    /// Whether text is made at all.
    pub verbose: bool,
    /// Whether text is printed at once.
    pub print: bool,
    last: VecDeque<String>,
}

impl Trace {
    /// An empty trace.
    pub fn new(verbose: bool, print: bool) -> Trace {
        Trace { digest: 0xcbf2_9ce4_8422_2325, verbose: verbose || print, print, last: VecDeque::new() }
    }

    /// Adds numbers to the digest.
    pub fn note(&mut self, numbers: &[u64]) {
        for number in numbers {
            self.digest = (self.digest ^ number).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
        }
    }

    /// Adds a line of text.
    pub fn line(&mut self, at_us: u64, text: String) {
        let line = format!("{:>5}.{:06} {text}", at_us / 1_000_000, at_us % 1_000_000);
        if self.print {
            println!("{line}");
        }
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }

    /// The digest of everything noted so far.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// The last lines.
    pub fn last_lines(&self) -> Vec<String> {
        self.last.iter().cloned().collect()
    }
}

/// A digest of bytes.
pub fn hash_bytes(seed: u64, bytes: &[u8]) -> u64 {
    let mut hash = seed ^ 0xcbf2_9ce4_8422_2325 ^ (bytes.len() as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    for byte in bytes {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash ^ (hash >> 29)
}

/// A map for numbers that nobody chose to collide. Never iterated: its order means nothing.
pub type Map<K, V> = HashMap<K, V, BuildHasherDefault<Mixer>>;

/// See [`Map`].
#[derive(Default)]
pub struct Mixer(u64);

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(26) ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }
}
