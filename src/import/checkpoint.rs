//! The checkpoint of an import: a file that records which input was read and which rows are handled. It is
//! append-only. The order of writes makes a kill at any moment harmless: the input prefix is written before its rows
//! are sent, and the report of a row before the row is marked as handled. A resume sends all other rows again under
//! the same ids.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

use super::line_set::{self, LineSet};
use super::{InputEncoding, InputFormat, Mapping, RowCounts};
use crate::domain::ContractId;

/// Parameters of an import. A resume must have the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportJob {
    /// 128 random bits, from which the ids of rows without an own id are derived.
    pub id: String,
    /// Contract of the rows.
    pub contract: ContractId,
    /// Format of the input.
    pub format: InputFormat,
    /// Encoding of the input.
    #[serde(default)]
    pub encoding: InputEncoding,
    /// Column mappings.
    #[serde(default)]
    pub mappings: Vec<Mapping>,
    /// Field or column with the id of a row.
    pub id_field: Option<String>,
    /// Whether clear-text passwords may look like hashes.
    #[serde(default)]
    pub allow_hash_like: bool,
    /// Whether the report is a file, which a resume continues.
    pub to_file: bool,
}

/// Length and digest of the input that was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct InputPrefix {
    /// Length in bytes.
    pub(super) offset: u64,
    /// SHA-256 of these bytes, in hexadecimal.
    pub(super) digest: String,
}

/// A line of the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum CheckpointEntry {
    Job(ImportJob),
    Read(InputPrefix),
    Handled {
        lines: String,
        /// Counts of all rows handled so far.
        counts: RowCounts,
        /// Length of the report in bytes, if it is a file.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        report_length: Option<u64>,
    },
}

/// The checkpoint of a running import. The file is created when the first row is sent: before that there is nothing to
/// resume, and another import may start. The open file is locked against other processes.
pub struct Checkpoint {
    file: Option<File>,
    path: PathBuf,
    /// Whether the new file replaces that of an import that sent no row.
    replaces: bool,
    /// Parameters, for the new file.
    job: ImportJob,
    prefix: Option<InputPrefix>,
    /// Last line handled before the file was created. All lines up to it were refused.
    refused_up_to: Option<u64>,
    /// Lines handled since the last write.
    unwritten: Vec<u64>,
    /// Whether a write failed. It may have written a partial line, which no other line may follow.
    failed: bool,
}

/// State of an interrupted import.
#[derive(Debug)]
pub struct ResumeState {
    /// Parameters of the import.
    pub job: ImportJob,
    /// Lines that are not sent again.
    pub handled: LineSet,
    /// Counts of these lines.
    pub counts: RowCounts,
    /// Length of the report about these lines, in bytes.
    pub report_length: Option<u64>,
    pub(super) prefix: Option<InputPrefix>,
}

impl Checkpoint {
    /// Starts a new import. Returns an error if the file exists, unless it is of an import that sent no row.
    pub fn create(path: &Path, job: &ImportJob) -> anyhow::Result<Self> {
        let name = path.display();
        let replaces = path.exists();
        if replaces {
            let file = File::open(path).with_context(|| name.to_string())?;
            let is_empty = file.metadata().with_context(|| name.to_string())?.len() == 0;
            lock(&file, path)?;
            match read_entries(&file, path) {
                Ok((resumed, _)) => ensure!(
                    resumed.prefix.is_none(),
                    "{name}: is the checkpoint of an interrupted import; resume it with --resume, or remove \
                     the file to start a new import"
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
            prefix: None,
            refused_up_to: None,
            unwritten: Vec::new(),
            failed: false,
        })
    }

    /// Creates the file, before the first row is sent.
    pub(super) fn create_file(&mut self) -> anyhow::Result<()> {
        if self.file.is_some() {
            return Ok(());
        }
        let mut options = OpenOptions::new();
        options.append(true).mode(0o600).create_new(!self.replaces);
        let file = options.open(&self.path);
        let file = file.with_context(|| {
            format!(
                "{}: cannot write the checkpoint; give --checkpoint another file",
                self.path.display()
            )
        })?;
        lock(&file, &self.path)?;
        file.set_len(0)?;
        self.file = Some(file);
        self.append(&CheckpointEntry::Job(self.job.clone()))?;
        match self.prefix.take() {
            Some(prefix) => self.append(&CheckpointEntry::Read(prefix)),
            None => Ok(()),
        }
    }

    /// Opens the checkpoint of an interrupted import. Returns an error if there is none, or another process has it
    /// open.
    pub fn resume(path: &Path) -> anyhow::Result<(Self, ResumeState)> {
        let name = path.display();
        let file = OpenOptions::new().read(true).append(true).open(path).with_context(|| {
            format!(
                "{name}: no import to resume; omit --resume to start one, or give its --checkpoint"
            )
        })?;
        lock(&file, path)?;
        let (resumed, length) = read_entries(&file, path)?;
        file.set_len(length)?;
        (&file).seek(SeekFrom::End(0))?;
        let checkpoint = Self {
            file: Some(file),
            path: path.to_owned(),
            replaces: false,
            job: resumed.job.clone(),
            prefix: None,
            refused_up_to: None,
            unwritten: Vec::new(),
            failed: false,
        };
        Ok((checkpoint, resumed))
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the file, because all rows are handled.
    pub fn remove(self) -> anyhow::Result<()> {
        if self.file.is_none() {
            return Ok(());
        }
        std::fs::remove_file(&self.path)
            .with_context(|| format!("{}: cannot remove the checkpoint", self.path.display()))
    }

    /// Records the input that was read. Must be called before a row of it is sent.
    pub(super) fn record_prefix(&mut self, prefix: &InputPrefix) -> anyhow::Result<()> {
        if self.file.is_none() {
            self.prefix = Some(prefix.clone());
            return Ok(());
        }
        self.append(&CheckpointEntry::Read(prefix.clone()))
    }

    /// Marks a row as handled. [`Checkpoint::write`] writes it.
    pub(super) fn mark_handled(&mut self, line: u64) {
        match self.file {
            Some(_) => self.unwritten.push(line),
            None => self.refused_up_to = self.refused_up_to.max(Some(line)),
        }
    }

    /// Writes the handled rows. Their reports must be written before.
    pub(super) fn write(
        &mut self,
        counts: RowCounts,
        report_length: Option<u64>,
    ) -> anyhow::Result<()> {
        if self.file.is_none() || (self.unwritten.is_empty() && self.refused_up_to.is_none()) {
            return Ok(());
        }
        let refused =
            self.refused_up_to.take().map_or_else(String::new, |last| format!("1-{last} "));
        let lines = refused + &line_set::format(&mut self.unwritten);
        self.unwritten.clear();
        self.append(&CheckpointEntry::Handled { lines, counts, report_length })
    }

    fn append(&mut self, entry: &CheckpointEntry) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        let name = self.path.display();
        ensure!(!self.failed, "{name}: not written, because an earlier write failed");
        let mut file = self.file.as_ref().context("the checkpoint is not open")?;
        // A single write, so that a kill leaves all or nothing; synced before more rows are sent.
        let written = file.write_all(&line).and_then(|()| file.sync_data());
        self.failed = written.is_err();
        written.with_context(|| format!("{name}: cannot write the checkpoint"))
    }
}

fn lock(file: &File, path: &Path) -> anyhow::Result<()> {
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            bail!("{}: in use by another import", path.display())
        }
        // The import continues on a file system without locks.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(()),
    }
}

/// Reads a checkpoint line by line. Returns its state and the length of all complete lines in bytes.
fn read_entries(file: &File, path: &Path) -> anyhow::Result<(ResumeState, u64)> {
    let name = path.display();
    let mut reader = BufReader::new(file);
    let (mut line, mut length, mut resumed) = (Vec::new(), 0, None);
    while reader.read_until(b'\n', &mut line).with_context(|| name.to_string())? > 0 {
        // A kill may have truncated the last line.
        if line.last() != Some(&b'\n') {
            break;
        }
        let entry = serde_json::from_slice(&line);
        let read = entry.ok().and_then(|entry| apply(&mut resumed, entry));
        ensure!(read.is_some(), "{name}: not a checkpoint of `muster import`");
        length += line.len() as u64;
        line.clear();
    }
    let resumed =
        resumed.with_context(|| format!("{name}: not a checkpoint of `muster import`"))?;
    Ok((resumed, length))
}

/// Applies a line of the file. Returns `None` if it is out of place.
fn apply(resumed: &mut Option<ResumeState>, entry: CheckpointEntry) -> Option<()> {
    match (entry, resumed) {
        (CheckpointEntry::Job(job), resumed @ None) => {
            *resumed = Some(ResumeState {
                job,
                handled: LineSet::default(),
                counts: RowCounts::default(),
                report_length: None,
                prefix: None,
            });
        }
        (CheckpointEntry::Read(prefix), Some(resumed)) => resumed.prefix = Some(prefix),
        (CheckpointEntry::Handled { lines, counts, report_length }, Some(resumed)) => {
            resumed.handled.add_parsed(&lines)?;
            (resumed.counts, resumed.report_length) = (counts, report_length);
        }
        _ => return None,
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> ImportJob {
        ImportJob {
            id: "ab".into(),
            contract: ContractId::Register,
            format: InputFormat::Ndjson,
            encoding: InputEncoding::Utf8,
            mappings: Vec::new(),
            id_field: None,
            allow_hash_like: false,
            to_file: true,
        }
    }

    #[test]
    fn checkpoint_truncated_anywhere_can_be_resumed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("checkpoint");
        std::fs::write(&path, "").unwrap();
        let mut checkpoint = Checkpoint::create(&path, &job()).unwrap();
        checkpoint.create_file().unwrap();
        assert!(Checkpoint::create(&path, &job()).is_err(), "the file is locked");
        assert!(Checkpoint::resume(&path).is_err(), "the file is locked");
        let started = std::fs::metadata(&path).unwrap().len() as usize;
        checkpoint.record_prefix(&InputPrefix { offset: 100, digest: "d1".into() }).unwrap();
        for line in [2, 1, 5] {
            checkpoint.mark_handled(line);
        }
        let counts = RowCounts { created: 3, ..RowCounts::default() };
        checkpoint.write(counts, Some(42)).unwrap();
        drop(checkpoint);
        let whole = std::fs::read(&path).unwrap();
        for cut in started..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let (mut checkpoint, resumed) = Checkpoint::resume(&path).unwrap();
            assert_eq!(resumed.job, job());
            if cut == whole.len() {
                assert!(
                    resumed.handled.contains(5)
                        && resumed.handled.contains(1)
                        && !resumed.handled.contains(3)
                );
                assert_eq!((resumed.counts, resumed.report_length), (counts, Some(42)));
            } else {
                assert!(!resumed.handled.contains(1));
            }
            checkpoint.mark_handled(7);
            checkpoint.write(RowCounts::default(), None).unwrap();
            drop(checkpoint);
            assert!(Checkpoint::resume(&path).unwrap().1.handled.contains(7), "{cut}");
        }
        assert!(Checkpoint::create(&path, &job()).is_err(), "rows were sent");
        std::fs::write(&path, &whole[..started]).unwrap();
        assert!(Checkpoint::create(&path, &job()).is_ok(), "no row was sent");
        std::fs::write(&path, "users\n").unwrap();
        assert!(Checkpoint::resume(&path).is_err());
        assert!(Checkpoint::create(&path, &job()).is_err(), "not a checkpoint");
    }

    #[test]
    fn rows_refused_before_the_first_is_sent_are_recorded() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("checkpoint");
        let mut checkpoint = Checkpoint::create(&path, &job()).unwrap();
        checkpoint.record_prefix(&InputPrefix { offset: 9, digest: "d".into() }).unwrap();
        checkpoint.mark_handled(1);
        checkpoint.mark_handled(3);
        let counts = RowCounts { invalid: 2, ..RowCounts::default() };
        checkpoint.write(counts, Some(7)).unwrap();
        assert!(!path.exists());
        checkpoint.create_file().unwrap();
        checkpoint.mark_handled(9);
        checkpoint.write(counts, Some(8)).unwrap();
        drop(checkpoint);
        let (_, resumed) = Checkpoint::resume(&path).unwrap();
        assert_eq!(resumed.prefix.map(|prefix| prefix.offset), Some(9));
        assert!(
            [1, 2, 3, 9].iter().all(|line| resumed.handled.contains(*line))
                && !resumed.handled.contains(4)
        );
    }

    #[test]
    fn failed_write_is_not_followed_by_another() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("checkpoint");
        let mut checkpoint = Checkpoint::create(&path, &job()).unwrap();
        checkpoint.create_file().unwrap();
        checkpoint.mark_handled(1);
        checkpoint.write(RowCounts::default(), None).unwrap();
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let real = checkpoint.file.replace(full);
        checkpoint.mark_handled(2);
        assert!(checkpoint.write(RowCounts::default(), None).is_err());
        // A partial line, as a full disk leaves it. Then the disk has space again.
        checkpoint.file = real;
        checkpoint.file.as_ref().unwrap().write_all(b"{\"done\":{\"li").unwrap();
        checkpoint.mark_handled(3);
        let error = checkpoint.write(RowCounts::default(), None).unwrap_err().to_string();
        assert!(error.contains("an earlier write failed"), "{error}");
        drop(checkpoint);
        let handled = Checkpoint::resume(&path).unwrap().1.handled;
        assert!(handled.contains(1) && !handled.contains(2) && !handled.contains(3));
    }
}
