//! The processor time of this process's threads, told apart by their names. Linux only; elsewhere
//! there are no figures.

use std::fs;
use std::time::Duration;

/// The name of threads that make load and belong to nobody's signup.
pub(super) const LOAD: &str = "load";
/// How the names of hashing threads begin.
const HASH: &str = "hash-";
/// `/proc` counts in ticks of `sysconf(_SC_CLK_TCK)`, which is 100 a second on Linux everywhere.
const TICK: Duration = Duration::from_millis(10);

/// Processor time spent so far by threads that neither hash nor make load.
pub(super) fn own_time() -> Duration {
    let Ok(threads) = fs::read_dir("/proc/self/task") else { return Duration::ZERO };
    threads
        .flatten()
        .filter_map(|thread| {
            let stat = fs::read_to_string(thread.path().join("stat")).ok()?;
            // `pid (name) state ...`; the name may hold anything.
            let (start, rest) = stat.rsplit_once(')')?;
            let name = start.split_once('(')?.1;
            if name == LOAD || name.starts_with(HASH) {
                return None;
            }
            // After the name, user and system time are the 12th and 13th fields (proc(5)).
            let mut fields = rest.split_whitespace().skip(11);
            let ticks: u32 =
                fields.next()?.parse::<u32>().ok()? + fields.next()?.parse::<u32>().ok()?;
            Some(TICK * ticks)
        })
        .sum()
}
