//! The data: Debian's package index, as it lies on every Debian machine. Name → record, in as many numbered rounds as are needed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;

/// What all keys begin with.
pub const KEY_PREFIX: &[u8] = b"demo/";

/// Records are cut to this many bytes, which few exceed.
const RECORD_BYTES_MAX: usize = 2 << 10;
/// Files of the last resort that are read, at most, with this many bytes each.
const FALLBACK_FILES: usize = 2000;

/// Keys and values by index, made on demand.
pub struct DataSet {
    source: String,
    /// Name and record, sorted by name, each name once.
    records: Vec<(String, Bytes)>,
    len: usize,
}

impl DataSet {
    /// Reads what the machine has and repeats it until there are `writes` pairs.
    pub fn load(writes: usize) -> Result<DataSet> {
        let (source, mut records) = package_lists()
            .or_else(|| installed(Path::new("/var/lib/dpkg/status")))
            .or_else(|| files(Path::new("/usr/share")))
            .context("this machine has neither a package index nor files in /usr/share")?;
        records.sort_by(|a, b| a.0.cmp(&b.0));
        records.dedup_by(|a, b| a.0 == b.0);
        ensure!(records.len() >= 100, "{source} has {} records only", records.len());
        Ok(DataSet { source, records, len: writes })
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    pub fn records(&self) -> usize {
        self.records.len()
    }

    /// Pairs in all.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The key of a pair. Neighbours in number are far apart in key order, so that writes go to all regions at once.
    pub fn key(&self, index: usize) -> Vec<u8> {
        let (round, record) = self.place(index);
        key_of(round, &self.records[record].0)
    }

    /// The value of a pair, different in each round.
    pub fn value(&self, index: usize) -> Bytes {
        let (round, record) = self.place(index);
        [format!("Round: {round}\n").as_bytes(), &self.records[record].1].concat().into()
    }

    /// Keys that cut the data into `regions` ranges with about as many pairs each.
    pub fn split_keys(&self, regions: usize) -> Vec<Vec<u8>> {
        let rounds = self.len.div_ceil(self.records.len());
        let cells = rounds * self.records.len();
        (1..regions.max(1))
            .map(|n| n * cells / regions)
            .map(|cell| key_of(cell / self.records.len(), &self.records[cell % self.records.len()].0))
            .collect()
    }

    /// Index to round and record: a fixed step that has no factor in common with the number of cells visits each cell once.
    fn place(&self, index: usize) -> (usize, usize) {
        let rounds = self.len.div_ceil(self.records.len());
        let cells = rounds * self.records.len();
        let step = step_for(cells);
        let cell = (index as u128 * step as u128 % cells as u128) as usize;
        (cell / self.records.len(), cell % self.records.len())
    }
}

fn key_of(round: usize, name: &str) -> Vec<u8> {
    [KEY_PREFIX, format!("{round:04}/{name}").as_bytes()].concat()
}

/// About the golden section of `cells`, without a common factor with it.
fn step_for(cells: usize) -> usize {
    let mut step = (cells as f64 * 0.618) as usize;
    while gcd(step.max(1), cells) != 1 {
        step += 1;
    }
    step.max(1)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

type Records = (String, Vec<(String, Bytes)>);

/// The package index that apt downloaded. Its files may be compressed; apt's own helper reads them all.
fn package_lists() -> Option<Records> {
    let mut records = Vec::new();
    for path in sorted_files(Path::new("/var/lib/apt/lists")) {
        let name = path.file_name()?.to_string_lossy().into_owned();
        let text = if name.ends_with("_Packages") {
            fs::read(&path).ok()
        } else if name.contains("_Packages.") {
            let helper = Command::new("/usr/lib/apt/apt-helper").arg("cat-file").arg(&path).output().ok();
            helper.filter(|output| output.status.success()).map(|output| output.stdout)
        } else {
            None
        };
        records.extend(text.iter().flat_map(|text| parse(text)));
    }
    (records.len() >= 1000).then(|| ("Debian's package index".to_owned(), records))
}

/// The packages that are installed.
fn installed(path: &Path) -> Option<Records> {
    let records = parse(&fs::read(path).ok()?);
    (records.len() >= 100).then(|| (path.display().to_string(), records))
}

/// The beginnings of files.
fn files(root: &Path) -> Option<Records> {
    let mut folders = vec![root.to_owned()];
    let mut records = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(kind) if kind.is_file() => {
                    let Ok(content) = fs::read(entry.path()) else { continue };
                    records.push((entry.path().display().to_string(), cut(&content)));
                }
                _ => {}
            }
            if records.len() >= FALLBACK_FILES {
                break;
            }
        }
        if records.len() >= FALLBACK_FILES {
            break;
        }
    }
    (!records.is_empty()).then(|| (format!("files in {}", root.display()), records))
}

fn sorted_files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.sort();
    files
}

/// Paragraphs that begin with or contain `Package: name`.
fn parse(text: &[u8]) -> Vec<(String, Bytes)> {
    let text = String::from_utf8_lossy(text);
    let paragraphs = text.split("\n\n").map(|paragraph| paragraph.trim_matches('\n'));
    paragraphs
        .filter_map(|paragraph| {
            let name = paragraph.lines().find_map(|line| line.strip_prefix("Package: "))?;
            Some((name.trim().to_owned(), cut(paragraph.as_bytes())))
        })
        .collect()
}

fn cut(record: &[u8]) -> Bytes {
    Bytes::copy_from_slice(&record[..record.len().min(RECORD_BYTES_MAX)])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn data(len: usize) -> DataSet {
        let records = (0..100).map(|n| (format!("package-{n:03}"), Bytes::from(format!("record {n}")))).collect();
        DataSet { source: "test".into(), records, len }
    }

    #[test]
    fn every_pair_has_a_key_of_its_own() {
        for len in [1, 99, 100, 101, 250, 1000] {
            let data = data(len);
            let keys: BTreeSet<_> = (0..len).map(|index| data.key(index)).collect();
            assert_eq!(keys.len(), len);
        }
    }

    #[test]
    fn splits_share_the_pairs_evenly_even_early_on() {
        let data = data(1000);
        let splits = data.split_keys(8);
        assert_eq!(splits.len(), 7);
        assert!(splits.is_sorted());
        let mut counts = [0; 8];
        for index in 0..200 {
            counts[splits.partition_point(|split| *split <= data.key(index))] += 1;
        }
        assert!(counts.iter().all(|count| (15..=35).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_package_index_is_parsed() {
        let text = b"Package: a\nVersion: 1\n\nPackage: b\nDescription: x\n .\n y\n\n";
        let records = parse(text);
        assert_eq!(records[0], ("a".to_owned(), Bytes::from_static(b"Package: a\nVersion: 1")));
        assert_eq!(records[1].0, "b");
        assert_eq!(records.len(), 2);
    }

    #[test]
    fn a_value_tells_its_round() {
        let data = data(200);
        let values: BTreeSet<_> = (0..200).map(|index| data.value(index)).collect();
        assert_eq!(values.len(), 200);
    }
}
