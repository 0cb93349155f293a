//! The ledger of an import: what was read of the input, and which rows are done. It is only appended
//! to, a few bytes a row, and written in an order that makes a kill at any moment harmless: what was
//! read before its rows are sent, the report of a row before the row is done. A row that is not done in
//! it is sent again under its own id.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

use super::done::{self, Lines};
use super::{Encoding, Format, Mapping, Tally};
use crate::domain::ContractId;

/// What an import is, so that another one cannot go on with its ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// 128 random bits, from which rows that name no id have theirs.
    pub id: String,
    /// Whose documents the rows are.
    pub contract: ContractId,
    /// How they are written.
    pub format: Format,
    /// How they are encoded.
    #[serde(default)]
    pub encoding: Encoding,
    /// Columns under other names than the contract's.
    #[serde(default)]
    pub mappings: Vec<Mapping>,
    /// The field or column that names a row.
    pub id_field: Option<String>,
    /// Whether clear passwords may look like hashes.
    #[serde(default)]
    pub allow_hash_like: bool,
    /// Whether the report is a file, which a resume goes on with.
    pub to_file: bool,
}

/// How much of the input was read, and what it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pin {
    /// Bytes.
    pub(super) offset: u64,
    /// SHA-256 over them, in hexadecimal.
    pub(super) digest: String,
}

/// One line of the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Entry {
    Job(Job),
    Read(Pin),
    Done {
        lines: String,
        /// Of all lines done so far.
        tally: Tally,
        /// Bytes of the report, where it is a file.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        output: Option<u64>,
    },
}

/// The ledger of a running import. The file is made when the first row is sent: until then there is nothing
/// to resume, and another import may begin. While it is open no other process can open it.
pub struct Ledger {
    file: Option<File>,
    path: PathBuf,
    /// Whether the file that is to be made replaces one of an import that sent no row.
    replaces: bool,
    /// For the file that is to be made.
    job: Job,
    pin: Option<Pin>,
    /// The last line that was done before the file was made. All lines up to it were refused.
    before: Option<u64>,
    /// Lines done since the last write.
    waiting: Vec<u64>,
    /// Whether a write failed. A line may be cut short then, and another must not follow it.
    failed: bool,
}

/// What a ledger holds.
#[derive(Debug)]
pub struct Resumed {
    /// The import that it is of.
    pub job: Job,
    /// Rows that need not be sent again.
    pub done: Lines,
    /// How they ended.
    pub tally: Tally,
    /// Bytes of the report that are about them.
    pub output: Option<u64>,
    pub(super) pin: Option<Pin>,
}

impl Ledger {
    /// One for a new import, at a path that is free. What another import left that sent no row is no
    /// obstacle.
    pub fn create(path: &Path, job: &Job) -> anyhow::Result<Self> {
        let name = path.display();
        let replaces = path.exists();
        if replaces {
            let file = File::open(path).with_context(|| name.to_string())?;
            let is_empty = file.metadata().with_context(|| name.to_string())?.len() == 0;
            lock(&file, path)?;
            match read_entries(&file, path) {
                Ok((resumed, _)) => ensure!(
                    resumed.pin.is_none(),
                    "{name}: an import was begun here and not finished; --resume resumes it, and after \
                     removing that file a new one can begin"
                ),
                Err(_) if is_empty => {}
                Err(_) => {
                    bail!("{name}: exists and is not a checkpoint; give --checkpoint another file")
                }
            }
        }
        Ok(Self {
            file: None,
            path: path.to_owned(),
            replaces,
            job: job.clone(),
            pin: None,
            before: None,
            waiting: Vec::new(),
            failed: false,
        })
    }

    /// Makes the file, before the first row is sent.
    pub(super) fn begin(&mut self) -> anyhow::Result<()> {
        if self.file.is_some() {
            return Ok(());
        }
        let mut options = OpenOptions::new();
        options.append(true).mode(0o600).create_new(!self.replaces);
        let file = options.open(&self.path);
        let file = file.with_context(|| {
            format!("{}: give --checkpoint a file that can be written", self.path.display())
        })?;
        lock(&file, &self.path)?;
        file.set_len(0)?;
        self.file = Some(file);
        self.append(&Entry::Job(self.job.clone()))?;
        match self.pin.take() {
            Some(pin) => self.append(&Entry::Read(pin)),
            None => Ok(()),
        }
    }

    /// Goes on with one.
    pub fn resume(path: &Path) -> anyhow::Result<(Self, Resumed)> {
        let name = path.display();
        let file = OpenOptions::new().read(true).append(true).open(path).with_context(|| {
            format!(
                "{name}: there is no import to resume; without --resume one begins (or name its --checkpoint)"
            )
        })?;
        lock(&file, path)?;
        let (resumed, whole) = read_entries(&file, path)?;
        file.set_len(whole)?;
        (&file).seek(SeekFrom::End(0))?;
        let ledger = Self {
            file: Some(file),
            path: path.to_owned(),
            replaces: false,
            job: resumed.job.clone(),
            pin: None,
            before: None,
            waiting: Vec::new(),
            failed: false,
        };
        Ok((ledger, resumed))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it: everything is done.
    pub fn remove(self) -> anyhow::Result<()> {
        if self.file.is_none() {
            return Ok(());
        }
        std::fs::remove_file(&self.path)
            .with_context(|| format!("{}: cannot be removed", self.path.display()))
    }

    /// Pins what was read. Before any row of it is sent.
    pub(super) fn read(&mut self, pin: &Pin) -> anyhow::Result<()> {
        if self.file.is_none() {
            self.pin = Some(pin.clone());
            return Ok(());
        }
        self.append(&Entry::Read(pin.clone()))
    }

    /// A row is done; written with the next [`Ledger::write`].
    pub(super) fn done(&mut self, line: u64) {
        match self.file {
            Some(_) => self.waiting.push(line),
            None => self.before = self.before.max(Some(line)),
        }
    }

    /// Writes which rows are done, after what was reported of them.
    pub(super) fn write(&mut self, tally: Tally, output: Option<u64>) -> anyhow::Result<()> {
        if self.file.is_none() || (self.waiting.is_empty() && self.before.is_none()) {
            return Ok(());
        }
        let before = self.before.take().map_or_else(String::new, |last| format!("1-{last} "));
        let lines = before + &done::written(&mut self.waiting);
        self.waiting.clear();
        self.append(&Entry::Done { lines, tally, output })
    }

    fn append(&mut self, entry: &Entry) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        let name = self.path.display();
        ensure!(!self.failed, "{name}: nothing is written after a write that failed");
        let mut file = self.file.as_ref().context("the checkpoint is not open")?;
        // One write, so that a kill leaves it there or not; and on the disk before more is sent.
        let written = file.write_all(&line).and_then(|()| file.sync_data());
        self.failed = written.is_err();
        written.with_context(|| format!("{name}: the checkpoint cannot be written"))
    }
}

fn lock(file: &File, path: &Path) -> anyhow::Result<()> {
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            bail!("{}: another import is at work with it", path.display())
        }
        // A file system without locks is no reason not to import.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(()),
    }
}

/// What a file holds, and how many bytes of it are whole lines. Reads line by line, and keeps no more than
/// the rows that are not done need.
fn read_entries(file: &File, path: &Path) -> anyhow::Result<(Resumed, u64)> {
    let name = path.display();
    let mut reader = BufReader::new(file);
    let (mut line, mut whole, mut resumed) = (Vec::new(), 0, None);
    while reader.read_until(b'\n', &mut line).with_context(|| name.to_string())? > 0 {
        // A kill may have cut the last line short.
        if line.last() != Some(&b'\n') {
            break;
        }
        let entry = serde_json::from_slice(&line);
        let read = entry.ok().and_then(|entry| add(&mut resumed, entry));
        ensure!(read.is_some(), "{name}: not a checkpoint of `muster import`");
        whole += line.len() as u64;
        line.clear();
    }
    let resumed =
        resumed.with_context(|| format!("{name}: not a checkpoint of `muster import`"))?;
    Ok((resumed, whole))
}

/// Adds a line of the file. `None` if it does not belong there.
fn add(resumed: &mut Option<Resumed>, entry: Entry) -> Option<()> {
    match (entry, resumed) {
        (Entry::Job(job), resumed @ None) => {
            *resumed = Some(Resumed {
                job,
                done: Lines::default(),
                tally: Tally::default(),
                output: None,
                pin: None,
            });
        }
        (Entry::Read(pin), Some(resumed)) => resumed.pin = Some(pin),
        (Entry::Done { lines, tally, output }, Some(resumed)) => {
            resumed.done.read(&lines)?;
            (resumed.tally, resumed.output) = (tally, output);
        }
        _ => return None,
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> Job {
        Job {
            id: "ab".into(),
            contract: ContractId::Register,
            format: Format::Ndjson,
            encoding: Encoding::Utf8,
            mappings: Vec::new(),
            id_field: None,
            allow_hash_like: false,
            to_file: true,
        }
    }

    #[test]
    fn a_ledger_cut_anywhere_can_be_resumed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ledger");
        std::fs::write(&path, "").unwrap();
        let mut ledger = Ledger::create(&path, &job()).unwrap();
        ledger.begin().unwrap();
        assert!(Ledger::create(&path, &job()).is_err(), "it is locked");
        assert!(Ledger::resume(&path).is_err(), "it is locked");
        let begun = std::fs::metadata(&path).unwrap().len() as usize;
        ledger.read(&Pin { offset: 100, digest: "d1".into() }).unwrap();
        for line in [2, 1, 5] {
            ledger.done(line);
        }
        let tally = Tally { created: 3, ..Tally::default() };
        ledger.write(tally, Some(42)).unwrap();
        drop(ledger);
        let whole = std::fs::read(&path).unwrap();
        for cut in begun..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let (mut ledger, resumed) = Ledger::resume(&path).unwrap();
            assert_eq!(resumed.job, job());
            if cut == whole.len() {
                assert!(resumed.done.has(5) && resumed.done.has(1) && !resumed.done.has(3));
                assert_eq!((resumed.tally, resumed.output), (tally, Some(42)));
            } else {
                assert!(!resumed.done.has(1));
            }
            ledger.done(7);
            ledger.write(Tally::default(), None).unwrap();
            drop(ledger);
            assert!(Ledger::resume(&path).unwrap().1.done.has(7), "{cut}");
        }
        assert!(Ledger::create(&path, &job()).is_err(), "rows were sent");
        std::fs::write(&path, &whole[..begun]).unwrap();
        assert!(Ledger::create(&path, &job()).is_ok(), "no row was sent");
        std::fs::write(&path, "users\n").unwrap();
        assert!(Ledger::resume(&path).is_err());
        assert!(Ledger::create(&path, &job()).is_err(), "another's file");
    }

    #[test]
    fn rows_refused_before_the_first_is_sent_are_done_in_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ledger");
        let mut ledger = Ledger::create(&path, &job()).unwrap();
        ledger.read(&Pin { offset: 9, digest: "d".into() }).unwrap();
        ledger.done(1);
        ledger.done(3);
        let tally = Tally { invalid: 2, ..Tally::default() };
        ledger.write(tally, Some(7)).unwrap();
        assert!(!path.exists());
        ledger.begin().unwrap();
        ledger.done(9);
        ledger.write(tally, Some(8)).unwrap();
        drop(ledger);
        let (_, resumed) = Ledger::resume(&path).unwrap();
        assert_eq!(resumed.pin.map(|pin| pin.offset), Some(9));
        assert!([1, 2, 3, 9].iter().all(|line| resumed.done.has(*line)) && !resumed.done.has(4));
    }

    #[test]
    fn nothing_follows_an_append_that_failed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ledger");
        let mut ledger = Ledger::create(&path, &job()).unwrap();
        ledger.begin().unwrap();
        ledger.done(1);
        ledger.write(Tally::default(), None).unwrap();
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let real = ledger.file.replace(full);
        ledger.done(2);
        assert!(ledger.write(Tally::default(), None).is_err());
        // Half a line, as a disk without room takes it; then there is room again.
        ledger.file = real;
        ledger.file.as_ref().unwrap().write_all(b"{\"done\":{\"li").unwrap();
        ledger.done(3);
        let told = ledger.write(Tally::default(), None).unwrap_err().to_string();
        assert!(told.contains("after a write that failed"), "{told}");
        drop(ledger);
        let done = Ledger::resume(&path).unwrap().1.done;
        assert!(done.has(1) && !done.has(2) && !done.has(3));
    }
}
