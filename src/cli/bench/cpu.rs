//! Processor time of the threads of this process, separated by thread name. Linux only; zero elsewhere.

use std::fs;
use std::time::Duration;

/// Name of the threads that generate load.
pub(super) const LOAD_THREAD: &str = "load";
/// Prefix of the names of hash threads.
const HASH_PREFIX: &str = "hash-";
/// Unit of the times in `/proc`: `sysconf(_SC_CLK_TCK)` is 100 per second on all Linux systems.
const TICK: Duration = Duration::from_millis(10);

/// Processor time spent so far by threads that neither hash nor generate load.
pub(super) fn service_time() -> Duration {
    let Ok(threads) = fs::read_dir("/proc/self/task") else { return Duration::ZERO };
    threads
        .flatten()
        .filter_map(|thread| {
            let stat = fs::read_to_string(thread.path().join("stat")).ok()?;
            // `pid (name) state ...`; the name may contain any character.
            let (start, rest) = stat.rsplit_once(')')?;
            let name = start.split_once('(')?.1;
            if name == LOAD_THREAD || name.starts_with(HASH_PREFIX) {
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
