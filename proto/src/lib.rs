//! Wire and disk formats: flotilla.* and the TiKV-compatible client protocol
