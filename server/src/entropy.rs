//! The one file that reads entropy.

/// A random number that is not 0.
pub fn number() -> u64 {
    loop {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).expect("the operating system gives entropy");
        match u64::from_be_bytes(bytes) {
            0 => {}
            number => return number,
        }
    }
}
