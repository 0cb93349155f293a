//! Compares the lanes with John the Ripper: `cargo run --release -p bcrypt-lanes --example john`.
//!
//! John's bcrypt is interleaved too: three candidates of one salt and one cost, in step. Both hash at
//! cost 5, which is what `john --test` measures, in turns on the same processors: first on one thread, then
//! on all. Rates are hashes a second of the wall clock. `taskset` in front restricts both.

#![allow(clippy::print_stdout, reason = "the report goes to standard output")]

use std::error::Error;
use std::io::ErrorKind;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use bcrypt_lanes::{Backend, Cost, Job, Lanes, MAX_LANES};

const USAGE: &str = "\
Usage: john [--rounds N] [--seconds N] [--lanes N] [--backend portable|bmi2] [--json]

  --rounds N    measurements of each program and number of threads (3)
  --seconds N   length of a measurement (3)
  --lanes N     lanes of a thread (6)
  --backend B   kernel of the lanes (the preferred one of this processor)
  --json        one JSON object instead of the table

JOHN is the program to compare with, if it is neither in PATH nor /usr/sbin/john.";

const MISSING: &str = "\
John the Ripper was not found. Install Debian's package: `apt-get install john`. \
If it is elsewhere, set JOHN to the program.";

/// The cost that `john --test` measures, as its output names it.
const COST: u32 = 5;
const COST_IN_OUTPUT: &str = "$2a$05";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("john: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let Some(options) = Options::parse(std::env::args().skip(1))? else {
        println!("{USAGE}");
        return Ok(());
    };
    bcrypt_lanes::self_test(options.backend)?;
    let john = find_john()?;
    let all = thread::available_parallelism()?.get();
    let mut rounds = Vec::new();
    for threads in if all > 1 { vec![1, all] } else { vec![1] } {
        for _ in 0..options.rounds {
            let john = john_rate(&john, threads, options.seconds)?;
            let lanes = lanes_rate(&options, threads)?;
            rounds.push(Round { threads, john, lanes });
        }
    }
    println!(
        "{}",
        if options.as_json { json(&options, &rounds) } else { table(&options, &rounds) }
    );
    Ok(())
}

struct Options {
    rounds: u32,
    seconds: u32,
    lanes: usize,
    backend: Backend,
    as_json: bool,
}

impl Options {
    /// `None` when help is requested.
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Option<Self>, Box<dyn Error>> {
        let mut options =
            Self { rounds: 3, seconds: 3, lanes: 6, backend: Backend::preferred(), as_json: false };
        while let Some(argument) = arguments.next() {
            let mut number = |limit: u32| match arguments.next().map(|text| text.parse::<u32>()) {
                Some(Ok(number)) if (1..=limit).contains(&number) => Ok(number),
                _ => Err(format!("{argument} expects a number of 1 to {limit}")),
            };
            match argument.as_str() {
                "--rounds" => options.rounds = number(1000)?,
                "--seconds" => options.seconds = number(3600)?,
                "--lanes" => options.lanes = number(MAX_LANES as u32)? as usize,
                "--backend" => {
                    let name = arguments.next().unwrap_or_default();
                    let backend = Backend::ALL.into_iter().find(|known| known.to_string() == name);
                    options.backend = backend.ok_or("--backend expects portable or bmi2")?;
                }
                "--json" => options.as_json = true,
                "--help" | "-h" => return Ok(None),
                _ => return Err(format!("unknown option {argument}\n\n{USAGE}").into()),
            }
        }
        Ok(Some(options))
    }
}

/// Rates of both programs, one after the other.
struct Round {
    threads: usize,
    john: f64,
    lanes: f64,
}

impl Round {
    fn ratio(&self) -> f64 {
        self.lanes / self.john
    }
}

/// The program to run. Debian installs it in `/usr/sbin`, which few users have in their `PATH`.
fn find_john() -> Result<String, Box<dyn Error>> {
    let candidates = match std::env::var("JOHN") {
        Ok(john) => vec![john],
        Err(_) => vec!["john".to_owned(), "/usr/sbin/john".to_owned()],
    };
    for john in candidates {
        match Command::new(&john).output() {
            Ok(_) => return Ok(john),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(format!("cannot run {john}: {error}").into()),
        }
    }
    Err(MISSING.into())
}

fn john_rate(john: &str, threads: usize, seconds: u32) -> Result<f64, Box<dyn Error>> {
    let output = Command::new(john)
        .args([&format!("--test={seconds}"), "--format=bcrypt"])
        .env("OMP_NUM_THREADS", threads.to_string())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let rate = real_rate(&text).filter(|_| output.status.success());
    rate.ok_or_else(|| {
        let errors = String::from_utf8_lossy(&output.stderr);
        format!(
            "{john} --test: expected a rate at cost {COST} ({COST_IN_OUTPUT}, \"c/s real\"), got:\n\
             {text}{errors}"
        )
        .into()
    })
}

/// The rate in the output of `john --test`: `Raw: 6600 c/s real, 6600 c/s virtual`. John abbreviates
/// large numbers with K and M.
fn real_rate(output: &str) -> Option<f64> {
    let (_, results) = output.split_once(COST_IN_OUTPUT)?;
    let (before, _) = results.split_once(" c/s real")?;
    let number = before.rsplit(char::is_whitespace).next()?;
    let factor = match number.chars().last()? {
        'K' => 1e3,
        'M' => 1e6,
        _ => 1.0,
    };
    Some(number.trim_end_matches(['K', 'M']).parse::<f64>().ok()? * factor)
}

/// Hashes a second of all threads together, with every lane occupied. Like john's candidates, all jobs have one
/// cost; unlike them, each has a salt of its own.
fn lanes_rate(options: &Options, threads: usize) -> Result<f64, Box<dyn Error>> {
    let seconds = Duration::from_secs(options.seconds.into());
    thread::scope(|scope| {
        let hash = |thread| {
            move || -> Result<f64, bcrypt_lanes::Error> {
                let mut lanes = Lanes::new(options.backend, options.lanes)?;
                let salt = |lane| [thread as u8, lane, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7];
                let jobs: Vec<_> = (0..options.lanes as u8)
                    .map(|lane| Job { password: b"correct horse battery", salt: salt(lane) })
                    .map(|job| Ok((Cost::new(COST)?, job)))
                    .collect::<Result<_, bcrypt_lanes::Error>>()?;
                let (started, mut hashed) = (Instant::now(), 0);
                while started.elapsed() < seconds {
                    hashed += lanes.hash_many(&jobs)?.len();
                }
                Ok(hashed as f64 / started.elapsed().as_secs_f64())
            }
        };
        let running: Vec<_> = (0..threads).map(|thread| scope.spawn(hash(thread))).collect();
        let mut rate = 0.0;
        for thread in running {
            rate += thread.join().map_err(|_| "a hashing thread panicked")??;
        }
        Ok(rate)
    })
}

fn table(options: &Options, rounds: &[Round]) -> String {
    let Options { lanes, backend, seconds, .. } = options;
    let mut text = format!(
        "cost {COST}, {lanes} lanes ({backend}), {seconds} s a measurement; hashes a second\n\n\
         threads      john     lanes  lanes / john\n"
    );
    for round in rounds {
        let Round { threads, john, lanes } = round;
        text += &format!("{threads:7}  {john:8.0}  {lanes:8.0}  {:12.2}\n", round.ratio());
    }
    for (threads, ratio) in medians(rounds) {
        text += &format!("\nmedian of {threads} thread{}: {ratio:.2}", plural(threads));
    }
    text
}

fn json(options: &Options, rounds: &[Round]) -> String {
    let Options { lanes, backend, seconds, .. } = options;
    let round = |round: &Round| {
        let Round { threads, john, lanes } = round;
        let ratio = round.ratio();
        format!(r#"{{"threads":{threads},"john":{john:.0},"lanes":{lanes:.0},"ratio":{ratio:.3}}}"#)
    };
    let rounds_json: Vec<String> = rounds.iter().map(round).collect();
    let median = |(threads, ratio)| format!(r#"{{"threads":{threads},"ratio":{ratio:.3}}}"#);
    let medians: Vec<String> = medians(rounds).into_iter().map(median).collect();
    format!(
        r#"{{"cost":{COST},"lanes":{lanes},"backend":"{backend}","seconds":{seconds},"rounds":[{}],"medians":[{}]}}"#,
        rounds_json.join(","),
        medians.join(",")
    )
}

/// The median ratio of each number of threads.
fn medians(rounds: &[Round]) -> Vec<(usize, f64)> {
    let mut medians = Vec::new();
    for group in rounds.chunk_by(|one, next| one.threads == next.threads) {
        let mut ratios: Vec<f64> = group.iter().map(Round::ratio).collect();
        ratios.sort_by(f64::total_cmp);
        let (low, high) = (ratios[(ratios.len() - 1) / 2], ratios[ratios.len() / 2]);
        medians.push((group[0].threads, f64::midpoint(low, high)));
    }
    medians
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_of_john_is_its_real_rate_at_cost_5() {
        let output = "Benchmarking: bcrypt (\"$2a$05\", 32 iterations) [Blowfish 32/64 X3]... DONE\n\
                      Raw:\t2691 c/s real, 1453 c/s virtual\n";
        assert_eq!(real_rate(output), Some(2691.0));
        assert_eq!(real_rate(&output.replace("2691", "31104K")), Some(31_104_000.0));
        assert_eq!(real_rate(&output.replace("$2a$05", "$2a$12")), None);
        assert_eq!(real_rate(&output.replace("c/s", "h/s")), None);
    }

    #[test]
    fn median_is_taken_for_each_number_of_threads() {
        let round = |threads, lanes| Round { threads, john: 10.0, lanes };
        let rounds =
            [round(1, 30.0), round(1, 10.0), round(1, 20.0), round(2, 10.0), round(2, 30.0)];
        assert_eq!(medians(&rounds), [(1, 2.0), (2, 2.0)]);
    }

    #[test]
    fn options_outside_their_limits_are_refused() {
        let parse = |text: &str| Options::parse(text.split_whitespace().map(str::to_owned));
        let options = parse("--rounds 1 --lanes 8 --backend portable --json").unwrap().unwrap();
        assert_eq!((options.rounds, options.lanes, options.as_json), (1, 8, true));
        assert!(parse("--help").unwrap().is_none());
        for wrong in
            ["--lanes 9", "--lanes 0", "--rounds", "--seconds x", "--backend avx", "--fast"]
        {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
