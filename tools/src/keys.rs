//! Keys as people write and read them.
//!
//! Printable ASCII stands for itself; a backslash is `\\` and any other byte `\xNN`. The octal `\NNN` of pd-ctl and Go's `\n`, `\r`, `\t`
//! and `\"` are read as well. With `--hex` keys are plain hexadecimal.

use anyhow::{Context as _, Result, bail};

/// How keys are written and read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Printable ASCII as it is, other bytes escaped.
    Escaped,
    /// Two hexadecimal digits for each byte.
    Hex,
}

impl Format {
    /// A key for people.
    pub fn show(self, key: &[u8]) -> String {
        match self {
            Format::Escaped => escape(key),
            Format::Hex => key.iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }

    /// A key from the command line.
    pub fn read(self, text: &str) -> Result<Vec<u8>> {
        match self {
            Format::Escaped => unescape(text),
            Format::Hex => unhex(text),
        }
        .with_context(|| format!("cannot read the key {text:?}"))
    }
}

/// Printable ASCII as it is, other bytes as `\xNN`.
pub fn escape(key: &[u8]) -> String {
    let mut out = String::with_capacity(key.len());
    for &byte in key {
        match byte {
            b'\\' => out.push_str("\\\\"),
            b' '..=b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("\\x{byte:02x}")),
        }
    }
    out
}

/// Reads what [`escape`] writes, and the escapes of Go and pd-ctl. Characters beyond ASCII stand for their UTF-8 bytes.
pub fn unescape(text: &str) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        if *first != b'\\' {
            out.push(*first);
            continue;
        }
        let Some(kind) = rest.first() else { bail!("it ends within an escape") };
        let (byte, used) = match kind {
            b'x' => (digits(rest.get(1..3), 16)?, 3),
            b'0'..=b'7' => (digits(rest.get(0..3), 8)?, 3),
            b'\\' | b'"' | b'\'' => (*kind, 1),
            b'n' => (b'\n', 1),
            b'r' => (b'\r', 1),
            b't' => (b'\t', 1),
            other => bail!("\\{} is no escape; write a backslash as \\\\", char::from(*other).escape_default()),
        };
        out.push(byte);
        rest = &rest[used..];
    }
    Ok(out)
}

fn unhex(text: &str) -> Result<Vec<u8>> {
    if !text.len().is_multiple_of(2) {
        bail!("it has an odd number of hexadecimal digits");
    }
    text.as_bytes().chunks(2).map(|pair| digits(Some(pair), 16)).collect()
}

fn digits(text: Option<&[u8]>, radix: u32) -> Result<u8> {
    let text = text.and_then(|text| std::str::from_utf8(text).ok()).unwrap_or_default();
    if text.is_empty() || !text.chars().all(|digit| digit.is_digit(radix)) {
        bail!("an escape or pair lacks digits of base {radix}");
    }
    u8::from_str_radix(text, radix).with_context(|| format!("{text} is more than a byte"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printable_keys_stand_for_themselves() {
        assert_eq!(escape(b"user/42 ~"), "user/42 ~");
        assert_eq!(escape(b"r\0\0\x01\xff\n"), "r\\x00\\x00\\x01\\xff\\x0a");
        assert_eq!(escape(b"a\\b"), "a\\\\b");
    }

    #[test]
    fn every_byte_survives_both_formats() {
        let key: Vec<u8> = (0..=255).collect();
        for format in [Format::Escaped, Format::Hex] {
            assert_eq!(format.read(&format.show(&key)).unwrap(), key);
        }
    }

    #[test]
    fn escapes_of_go_and_pd_ctl_are_read() {
        assert_eq!(unescape(r"t\200\000\377").unwrap(), b"t\x80\0\xff");
        assert_eq!(unescape(r#"\n\r\t\"\\"#).unwrap(), b"\n\r\t\"\\");
        assert_eq!(unescape("ä").unwrap(), "ä".as_bytes());
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for text in [r"\", r"\x1", r"\xg0", r"\x+1", r"\8", r"\12", r"\777", r"\q"] {
            assert!(unescape(text).is_err(), "{text}");
        }
        for text in ["1", "zz", "0x"] {
            assert!(Format::Hex.read(text).is_err(), "{text}");
        }
    }
}
