//! Faults at random, for as long as one likes: two fronts and two workers lose their wires and their
//! lives while clients are at work, and the ledger is compared with the store at the end.
//!
//! `SOAK_SECONDS=600 SOAK_SEED=1 ./tests/run --test it -- --ignored soak --nocapture`

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::support::Fleet;
use crate::support::proxy::Proxy;
use crate::support::random::{Random, env_number, pause};
use crate::support::fleet::ProxiedProcess;

/// Clients at work at any time.
const CLIENTS: usize = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes ten minutes"]
async fn soak() {
    let seconds = env_number("SOAK_SECONDS", 600);
    let seed = env_number("SOAK_SEED", u64::from(std::process::id()));
    println!("SOAK_SECONDS={seconds} SOAK_SEED={seed}");
    let Some(mut fleet) = Fleet::new(2, 2, &[]).await else { return };
    for worker in &mut fleet.workers {
        worker.start().await;
    }
    let mut random = Random(seed);
    let mut faults: BTreeMap<String, usize> = BTreeMap::new();
    let load = fleet.ledger.start_load(&fleet.addresses, CLIENTS);
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(seconds) {
        // Sometimes a second thing breaks before the first is mended.
        let broken: Vec<Fault> = (0..=random.below(2)).map(|_| Fault::any(&mut random)).collect();
        for fault in &broken {
            *faults.entry(fault.name()).or_default() += 1;
            fault.begin(&mut fleet).await;
            tokio::time::sleep(pause(&mut random, 1500)).await;
        }
        tokio::time::sleep(pause(&mut random, 3000)).await;
        for fault in &broken {
            fault.end(&mut fleet).await;
        }
        tokio::time::sleep(pause(&mut random, 1000)).await;
    }
    load.finish().await;
    let summary = fleet.repeat_and_compare().await;
    println!("{} registrations, {} requests", summary.registrations, summary.requests);
    println!("answers: {:?}", summary.answers);
    println!("faults: {}, {faults:?}", faults.values().sum::<usize>());
    println!("lost: {}, doubled: {}", summary.lost.len(), summary.doubled.len());
    summary.assert_consistent();
}

/// Something that breaks and is mended.
#[derive(Clone, Copy, Debug)]
struct Fault {
    what: What,
    front: bool,
    /// Which of the two.
    n: usize,
    store: bool,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Cut,
    Stall,
    Mute,
    Kill,
}

impl Fault {
    fn any(random: &mut Random) -> Self {
        let what = [What::Cut, What::Stall, What::Mute, What::Kill][random.below(4) as usize];
        // A front has no wire to the store.
        let front = random.below(3) == 0;
        Self { what, front, n: random.below(2) as usize, store: !front && random.below(2) == 0 }
    }

    fn name(&self) -> String {
        let who = if self.front { "front" } else { "worker" };
        match (self.what, self.store) {
            (What::Kill, _) => format!("kill {who}"),
            (what, true) => format!("{what:?} {who}-store").to_lowercase(),
            (what, false) => format!("{what:?} {who}-broker").to_lowercase(),
        }
    }

    fn node<'a>(&self, fleet: &'a mut Fleet) -> &'a mut ProxiedProcess {
        if self.front { &mut fleet.fronts[self.n] } else { &mut fleet.workers[self.n] }
    }

    fn wire<'a>(&self, fleet: &'a mut Fleet) -> &'a Proxy {
        let node = self.node(fleet);
        if self.store { &node.store } else { &node.broker }
    }

    async fn begin(&self, fleet: &mut Fleet) {
        match self.what {
            What::Cut => self.wire(fleet).cut(),
            What::Stall => self.wire(fleet).stall(),
            What::Mute => self.wire(fleet).drop_responses(),
            What::Kill if self.node(fleet).is_running() => {
                self.node(fleet).kill().await;
                fleet.update_addresses();
            }
            What::Kill => {}
        }
    }

    async fn end(&self, fleet: &mut Fleet) {
        match self.what {
            What::Kill if !self.node(fleet).is_running() => {
                // Whatever else is broken, a process that starts is not to wait for it.
                self.node(fleet).broker.restore();
                self.node(fleet).store.restore();
                self.node(fleet).start().await;
                fleet.update_addresses();
            }
            What::Kill => {}
            _ => self.wire(fleet).restore(),
        }
    }
}
