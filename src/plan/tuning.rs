//! The table of measured choices: which variant of a kernel was fastest for a class of shapes on this adapter.
//!
//! A table belongs to one adapter with one driver and lives in a file of the user's cache folder. An entry counts
//! only with the kernel texts that it was measured with; what the user forces counts always. The table is part of
//! what decides the bits of a run, so a run keeps the [`Choices`] it began with. Measuring is not done here:
//! see `bench::tune`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files;
use crate::gpu::{Caps, Choices};

/// The word that begins every file.
const FORMAT: &str = "semgen-tuning-1";

/// Whose table it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adapter {
    /// Name as the driver reports it.
    pub name: String,
    /// Backend.
    pub backend: String,
    /// Driver and its version.
    pub driver: String,
}

impl From<&Caps> for Adapter {
    fn from(caps: &Caps) -> Self {
        Self { name: caps.name.clone(), backend: caps.backend.clone(), driver: caps.driver.clone() }
    }
}

impl std::fmt::Display for Adapter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({}, {})", self.name, self.backend, self.driver)
    }
}

/// One variant that was tried.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    /// Its name.
    pub variant: String,
    /// Median time in seconds; none for a variant that was not timed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// Largest error against the reference, relative to its scale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<f64>,
    /// Why it may not win.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// What was found for one class of shapes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The fastest variant that gave the reference's numbers.
    pub chosen: String,
    /// What is used without an entry.
    pub default: String,
    /// Everything that was tried, fastest first, refused ones last.
    pub candidates: Vec<Candidate>,
    /// The shape it was measured on.
    pub shape: String,
    /// Multiply-adds × 2 of one run of that shape.
    pub flops: u64,
    /// `device` for timestamps of the device, `wall` for the time until it was done.
    pub clock: String,
    /// Hash of the kernel texts it was measured with.
    pub kernels: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    format: String,
    adapter: Adapter,
    #[serde(default)]
    off: bool,
    #[serde(default)]
    forced: BTreeMap<String, String>,
    #[serde(default)]
    entries: BTreeMap<String, Entry>,
}

/// The table of one adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct Tuning {
    path: PathBuf,
    kernels: String,
    table: Table,
}

/// What an import brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Entries taken over.
    pub entries: usize,
    /// Forced entries taken over.
    pub forced: usize,
    /// Entries left out because they were measured with other kernel texts.
    pub stale: usize,
}

/// File name of the table of `adapter`.
fn file_name(adapter: &Adapter) -> String {
    let slug: String = adapter.name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
    let parts: Vec<&str> = slug.split('-').filter(|p| !p.is_empty()).take(4).collect();
    let hash = files::sha256_hex(format!("{}\n{}\n{}", adapter.name, adapter.backend, adapter.driver).as_bytes());
    format!("{}-{}.json", parts.join("-"), &hash[..12])
}

fn read(path: &Path) -> Result<Table> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    let table: Table = serde_json::from_slice(&bytes)
        .map_err(|e| Error::input(path, format!("is not a tuning table of this program ({e}); remove it or run `semgen tune clear`")))?;
    if table.format != FORMAT {
        return Err(Error::input(path, format!("has the format `{}`, expected `{FORMAT}`; run `semgen tune clear`", table.format)));
    }
    Ok(table)
}

impl Tuning {
    /// An empty table for an adapter, to be kept in `folder`; `kernels` is the hash of the kernel texts now.
    pub fn empty(folder: &Path, caps: &Caps, kernels: &str) -> Self {
        let adapter = Adapter::from(caps);
        let path = folder.join("tuning").join(file_name(&adapter));
        let table = Table { format: FORMAT.into(), adapter, off: false, forced: BTreeMap::new(), entries: BTreeMap::new() };
        Self { path, kernels: kernels.to_owned(), table }
    }

    /// The table of an adapter in `folder`, empty where there is none.
    ///
    /// # Errors
    /// [`Error::Input`] for a file that is no table.
    pub fn load(folder: &Path, caps: &Caps, kernels: &str) -> Result<Self> {
        let mut tuning = Self::empty(folder, caps, kernels);
        if tuning.path.is_file() {
            tuning.table = read(&tuning.path)?;
            if tuning.table.adapter != Adapter::from(caps) {
                return Err(Error::input(
                    &tuning.path,
                    format!("belongs to {}, not to {}; run `semgen tune clear`", tuning.table.adapter, Adapter::from(caps)),
                ));
            }
        }
        Ok(tuning)
    }

    /// Writes the table to its file.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn save(&self) -> Result<()> {
        if let Some(folder) = self.path.parent() {
            files::create_dir(folder)?;
        }
        self.export(&self.path)
    }

    /// Writes the table to `path`.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn export(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.table).map_err(|e| Error::Failed(e.to_string()))?;
        files::write_bytes(path, format!("{text}\n").as_bytes())
    }

    /// Takes over the entries of the table in `path`; with `force` also those of another adapter.
    ///
    /// # Errors
    /// [`Error::Input`] for a file that is no table, or another adapter's without `force`.
    pub fn import(&mut self, path: &Path, force: bool) -> Result<Imported> {
        let other = read(path)?;
        if other.adapter != self.table.adapter && !force {
            return Err(Error::input(
                path,
                format!(
                    "was measured on {}, this is {}; measure with `semgen tune run`, or take it with --force",
                    other.adapter, self.table.adapter
                ),
            ));
        }
        let mut found = Imported { forced: other.forced.len(), ..Imported::default() };
        self.table.forced.extend(other.forced);
        for (key, entry) in other.entries {
            if entry.kernels == self.kernels {
                found.entries += 1;
                self.table.entries.insert(key, entry);
            } else {
                found.stale += 1;
            }
        }
        Ok(found)
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whose it is.
    pub fn adapter(&self) -> &Adapter {
        &self.table.adapter
    }

    /// Whether it is left aside.
    pub fn is_off(&self) -> bool {
        self.table.off
    }

    /// Leaves the table aside, or no longer.
    pub fn set_off(&mut self, off: bool) {
        self.table.off = off;
    }

    /// The entry for `key`, unless it was measured with other kernel texts.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.table.entries.get(key).filter(|e| e.kernels == self.kernels)
    }

    /// The entries that count, by key.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.table.entries.iter().filter(|(_, e)| e.kernels == self.kernels).map(|(k, e)| (k.as_str(), e))
    }

    /// Entries that were measured with other kernel texts.
    pub fn stale(&self) -> usize {
        self.table.entries.len() - self.entries().count()
    }

    /// What the user forces, by key.
    pub fn forced(&self) -> &BTreeMap<String, String> {
        &self.table.forced
    }

    /// Hash of the kernel texts that entries must have been measured with.
    pub fn kernels(&self) -> &str {
        &self.kernels
    }

    /// Keeps what was measured for `key`.
    pub fn insert(&mut self, key: &str, entry: Entry) {
        self.table.entries.insert(key.to_owned(), entry);
    }

    /// Forces a variant for `key`; none takes the force away.
    pub fn force(&mut self, key: &str, variant: Option<&str>) {
        match variant {
            Some(v) => self.table.forced.insert(key.to_owned(), v.to_owned()),
            None => self.table.forced.remove(key),
        };
    }

    /// Forgets every entry, forced ones too, and whether the table is off.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn clear(&mut self) -> Result<()> {
        (self.table.off, self.table.forced, self.table.entries) = (false, BTreeMap::new(), BTreeMap::new());
        match std::fs::remove_file(&self.path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", &self.path)(e)),
            _ => Ok(()),
        }
    }

    /// What kernels are asked to use: forced variants, then the fastest; none while the table is off.
    pub fn choices(&self) -> Choices {
        if self.table.off {
            return Choices::default();
        }
        let mut all: BTreeMap<String, String> = self.entries().map(|(k, e)| (k.to_owned(), e.chosen.clone())).collect();
        all.extend(self.table.forced.clone());
        Choices::new(all)
    }
}

/// The choices for an adapter from the user's table, read once per process. A table that cannot be read is left
/// aside with a warning: it can be measured again.
pub fn choices_for(caps: &Caps) -> Choices {
    static READ: OnceLock<Mutex<Vec<(Adapter, Choices)>>> = OnceLock::new();
    let mut read = READ.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    let adapter = Adapter::from(caps);
    if let Some((_, choices)) = read.iter().find(|(a, _)| *a == adapter) {
        return choices.clone();
    }
    let loaded = files::cache_dir().map(|dir| Tuning::load(&dir, caps, &crate::kernels::fingerprint(caps))).transpose();
    let choices = match loaded {
        Ok(tuning) => tuning.map_or_else(Choices::default, |t| t.choices()),
        Err(e) => {
            tracing::warn!("kernels are used with their defaults: {e}");
            Choices::default()
        }
    };
    read.push((adapter, choices.clone()));
    choices
}

/// Writes `choices` to `path`, for a run that goes on with them later.
///
/// # Errors
/// What the file system reports.
pub fn write_choices(path: &Path, choices: &Choices) -> Result<()> {
    let map: BTreeMap<&str, &str> = choices.iter().collect();
    let text = serde_json::to_string_pretty(&map).map_err(|e| Error::Failed(e.to_string()))?;
    files::write_bytes(path, format!("{text}\n").as_bytes())
}

/// Reads what [`write_choices`] wrote.
///
/// # Errors
/// [`Error::Input`] for anything else.
pub fn read_choices(path: &Path) -> Result<Choices> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    let map =
        serde_json::from_slice(&bytes).map_err(|e| Error::input(path, format!("is no list of kernel variants ({e}); start a new run")))?;
    Ok(Choices::new(map))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(chosen: &str, kernels: &str) -> Entry {
        let candidate =
            |variant: &str, seconds| Candidate { variant: variant.into(), seconds: Some(seconds), error: Some(1e-7), refused: None };
        Entry {
            chosen: chosen.into(),
            default: "plain".into(),
            candidates: vec![candidate(chosen, 1e-3), candidate("plain", 2e-3)],
            shape: "1×4×4×4×8".into(),
            flops: 1000,
            clock: "device".into(),
            kernels: kernels.into(),
        }
    }

    fn chosen(t: &Tuning) -> Vec<(String, String)> {
        t.choices().iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    }

    fn pair(k: &str, v: &str) -> (String, String) {
        (k.to_owned(), v.to_owned())
    }

    #[test]
    fn a_table_reads_back_and_stale_entries_do_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let caps = Caps::minimal();
        let mut t = Tuning::load(dir.path(), &caps, "new").unwrap();
        assert_eq!(chosen(&t), []);
        t.insert("a", entry("tile", "new"));
        t.insert("b", entry("tile", "old"));
        t.save().unwrap();
        let again = Tuning::load(dir.path(), &caps, "new").unwrap();
        assert_eq!(again, t);
        assert_eq!((chosen(&again), again.stale()), (vec![pair("a", "tile")], 1));
        assert_eq!(chosen(&Tuning::load(dir.path(), &caps, "newer").unwrap()), []);
        let other = Caps { driver: "another".into(), ..caps };
        assert_eq!(chosen(&Tuning::load(dir.path(), &other, "new").unwrap()), [], "each driver has its own table");
    }

    #[test]
    fn forced_entries_win_and_a_table_can_be_off() {
        let dir = tempfile::tempdir().unwrap();
        let mut t = Tuning::load(dir.path(), &Caps::minimal(), "k").unwrap();
        t.insert("a", entry("tile", "k"));
        t.force("a", Some("plain"));
        t.force("c", Some("simt"));
        assert_eq!(chosen(&t), [pair("a", "plain"), pair("c", "simt")]);
        t.force("a", None);
        assert_eq!(chosen(&t)[0], pair("a", "tile"));
        t.set_off(true);
        assert_eq!(chosen(&t), []);
        t.save().unwrap();
        assert!(Tuning::load(dir.path(), &Caps::minimal(), "k").unwrap().is_off());
        t.clear().unwrap();
        assert!(!t.path().exists() && t.entries().next().is_none() && !t.is_off());
        t.clear().unwrap();
    }

    #[test]
    fn another_adapters_table_is_refused_unless_forced_and_stale_entries_stay_out() {
        let dir = tempfile::tempdir().unwrap();
        let caps = Caps::minimal();
        let other = Caps { name: "Other GPU".into(), ..caps.clone() };
        let mut theirs = Tuning::empty(dir.path(), &other, "k");
        theirs.insert("a", entry("tile", "k"));
        theirs.insert("b", entry("tile", "older"));
        theirs.force("c", Some("simt"));
        let file = dir.path().join("export.json");
        theirs.export(&file).unwrap();
        let mut ours = Tuning::empty(dir.path(), &caps, "k");
        let e = ours.import(&file, false).unwrap_err().to_string();
        assert!(e.contains("Other GPU") && e.contains("--force"), "{e}");
        assert_eq!(ours.import(&file, true).unwrap(), Imported { entries: 1, forced: 1, stale: 1 });
        assert_eq!(chosen(&ours), [pair("a", "tile"), pair("c", "simt")]);
        std::fs::write(&file, "{}").unwrap();
        assert!(ours.import(&file, true).unwrap_err().to_string().contains("not a tuning table"));
    }

    #[test]
    fn a_run_keeps_its_choices() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("choices.json");
        let choices = Choices::new([pair("a", "tile"), pair("b", "plain")].into());
        write_choices(&file, &choices).unwrap();
        assert_eq!(read_choices(&file).unwrap(), choices);
        std::fs::write(&file, "[1]").unwrap();
        assert!(read_choices(&file).is_err());
    }
}
