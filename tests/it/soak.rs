//! Faults at random, for as long as one likes: two fronts and two workers lose their wires and their
//! lives while clients are at work, and the ledger is compared with the store at the end.
//!
//! `SOAK_SECONDS=600 SOAK_SEED=1 ./tests/run --test it -- --ignored soak --nocapture`

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::support::Rig;
use crate::support::proxy::Proxy;
use crate::support::random::{Random, number, pause};
use crate::support::rig::Node;

/// Clients at work at any time.
const CLIENTS: usize = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes ten minutes"]
async fn soak() {
    let seconds = number("SOAK_SECONDS", 600);
    let seed = number("SOAK_SEED", u64::from(std::process::id()));
    println!("SOAK_SECONDS={seconds} SOAK_SEED={seed}");
    let Some(mut rig) = Rig::new(2, 2, &[]).await else { return };
    for worker in &mut rig.workers {
        worker.start().await;
    }
    let mut random = Random(seed);
    let mut faults: BTreeMap<String, usize> = BTreeMap::new();
    let load = rig.ledger.drive(&rig.addresses, CLIENTS);
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(seconds) {
        // Sometimes a second thing breaks before the first is mended.
        let broken: Vec<Fault> = (0..=random.below(2)).map(|_| Fault::any(&mut random)).collect();
        for fault in &broken {
            *faults.entry(fault.name()).or_default() += 1;
            fault.begin(&mut rig).await;
            tokio::time::sleep(pause(&mut random, 1500)).await;
        }
        tokio::time::sleep(pause(&mut random, 3000)).await;
        for fault in &broken {
            fault.end(&mut rig).await;
        }
        tokio::time::sleep(pause(&mut random, 1000)).await;
    }
    load.finish().await;
    let figures = rig.settle().await;
    println!("{} registrations, {} requests", figures.registrations, figures.requests);
    println!("answers: {:?}", figures.answers);
    println!("faults: {}, {faults:?}", faults.values().sum::<usize>());
    println!("lost: {}, doubled: {}", figures.lost.len(), figures.doubled.len());
    figures.assert_kept();
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

    fn node<'a>(&self, rig: &'a mut Rig) -> &'a mut Node {
        if self.front { &mut rig.fronts[self.n] } else { &mut rig.workers[self.n] }
    }

    fn wire<'a>(&self, rig: &'a mut Rig) -> &'a Proxy {
        let node = self.node(rig);
        if self.store { &node.store } else { &node.broker }
    }

    async fn begin(&self, rig: &mut Rig) {
        match self.what {
            What::Cut => self.wire(rig).cut(),
            What::Stall => self.wire(rig).stall(),
            What::Mute => self.wire(rig).mute(),
            What::Kill if self.node(rig).runs() => {
                self.node(rig).kill().await;
                rig.tell_addresses();
            }
            What::Kill => {}
        }
    }

    async fn end(&self, rig: &mut Rig) {
        match self.what {
            What::Kill if !self.node(rig).runs() => {
                // Whatever else is broken, a process that starts is not to wait for it.
                self.node(rig).broker.heal();
                self.node(rig).store.heal();
                self.node(rig).start().await;
                rig.tell_addresses();
            }
            What::Kill => {}
            _ => self.wire(rig).heal(),
        }
    }
}
