//! Random worlds: a seed is a list of steps, made as it runs until there were enough events. A failure is shrunk by leaving out steps.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crate::check::Checked;
use crate::disk::{Crash, Fault, Happening};
use crate::random::Random;
use crate::world::{Absent, Config, Counts, Dummies, Step, Sync, World};

/// Every seed has at least so many events.
const EVENTS_MIN: u64 = 1_000;

/// A world in which hardly anything goes wrong, so that it grows.
fn is_quiet(seed: u64) -> bool {
    seed.is_multiple_of(5)
}

fn happening(random: &mut Random) -> Happening {
    let nth = random.below(40) as u16;
    match random.below(100) {
        0..22 => Happening::Crash(Crash::Cut(random.next())),
        22..38 => Happening::Crash(Crash::Kill),
        38..62 => Happening::Fault(match random.below(14) {
            0..3 => Fault::Sync,
            3 => Fault::Read,
            4..6 => Fault::Full(2 + random.below(40) as u32),
            6 => Fault::Descriptors(1 + random.below(8) as u32),
            7 => Fault::ShortWrite,
            8..10 => Fault::OtherFilesystem,
            10 => Fault::Denied,
            11 => Fault::Look,
            12 => Fault::Make,
            _ => Fault::Commit,
        }),
        62..74 => Happening::Write(nth),
        74..84 => Happening::Withdraw(nth),
        84..94 => Happening::Replace(nth),
        _ => Happening::Hold(nth),
    }
}

/// Some steps that end in a round.
fn chapter(random: &mut Random, quiet: bool, tags: &mut u32, steps: &mut Vec<Step>) {
    let files = 1 + random.below(10);
    for _ in 0..files {
        let tag = match random.below(10) {
            0 => 0,
            1..4 if *tags > 0 => 1 + random.below(u64::from(*tags)) as u32,
            _ => {
                *tags += 1;
                *tags
            }
        };
        steps.push(Step::Put {
            source: random.below(3) as u16,
            name: random.below(8) as u8,
            tag,
            sync: *random.pick(&[Sync::Never, Sync::Never, Sync::Data, Sync::All]),
            sidecar: random.percent(15),
        });
        let nth = random.below(40) as u16;
        match random.below(30) {
            0 => steps.push(Step::Overwrite(nth)),
            1 => steps.push(Step::Withdraw(nth)),
            2 => steps.push(Step::Fsync(nth)),
            _ => {}
        }
    }
    let trouble =
        |random: &mut Random, percent| random.percent(if quiet { percent / 15 } else { percent });
    if trouble(random, 15) {
        steps.push(Step::DeleteStored(random.below(40) as u16));
    }
    let hour = 3_600_000_000;
    match random.below(12) {
        0 => steps.push(Step::Clock(random.below(3 * hour as u64) as i64)),
        1 => steps.push(Step::Clock(-(random.below(30 * hour as u64) as i64))),
        2 => steps.push(Step::Clock(24 * hour)),
        _ => steps.push(Step::Clock(random.below(60_000_000) as i64)),
    }
    while trouble(random, 45) {
        steps.push(Step::During(
            1 + random.below(files * 16) as u32,
            happening(random),
        ));
    }
    while trouble(random, 30) {
        steps.push(Step::DuringStart(
            1 + random.below(60) as u32,
            happening(random),
        ));
    }
    steps.push(Step::Round {
        take: 1 + random.below(12) as u8,
        skip: random.below(40) as u8,
    });
    if trouble(random, 12) {
        let some = |random: &mut Random| random.percent(40).then(|| 1 + random.below(3) as u16);
        let absent = Absent {
            former: some(random),
            gone: some(random),
        };
        steps.push(Step::Absent(absent));
    }
    match random.below(100) {
        0..6 => steps.push(Step::Restart),
        6..14 if !quiet => steps.push(Step::Crash(Crash::Kill)),
        14..24 if !quiet => steps.push(Step::Crash(Crash::Cut(random.next()))),
        _ => {}
    }
}

fn config(seed: u64) -> Config {
    Config::random(&mut Random::new(seed ^ 0xc0ff))
}

/// Runs a seed and returns its steps.
pub fn run(seed: u64, dummies: &Dummies) -> (Vec<Step>, Result<Counts, String>) {
    let mut random = Random::new(seed);
    let mut world = World::new(seed, config(seed), dummies);
    let mut steps = Vec::new();
    let mut tags = 0;
    let mut done = 0;
    while world.state.borrow().events < EVENTS_MIN {
        chapter(&mut random, is_quiet(seed), &mut tags, &mut steps);
        while done < steps.len() {
            done += 1;
            if let Err(what) = world.step(&steps[done - 1]) {
                steps.truncate(done);
                return (steps, Err(what));
            }
        }
    }
    let drained = world.drain();
    (steps, drained.map(|()| world.counts))
}

/// Runs these steps.
pub fn run_steps(seed: u64, steps: &[Step], dummies: &Dummies, trace: bool) -> Checked {
    let mut world = World::new(seed, config(seed), dummies);
    world.state.borrow_mut().trace = trace;
    for step in steps {
        world.step(step)?;
    }
    world.drain()
}

/// Leaves out what is not needed to fail. Returns the numbers of the steps that stay.
fn shrink(seed: u64, steps: &[Step], what: &str, dummies: &Dummies) -> Vec<usize> {
    let began = Instant::now();
    let mut kept: Vec<usize> = (0..steps.len()).collect();
    let fails = |kept: &[usize]| {
        let steps: Vec<Step> = kept.iter().map(|&at| steps[at].clone()).collect();
        let ended = run_steps(seed, &steps, dummies, false);
        ended.is_err_and(|other| kind(&other) == kind(what))
    };
    let mut size = kept.len().div_ceil(2);
    while size > 0 && began.elapsed().as_secs() < 20 {
        let mut at = 0;
        let mut shrunk = false;
        while at < kept.len() {
            let mut fewer = kept.clone();
            fewer.drain(at..(at + size).min(kept.len()));
            if fails(&fewer) {
                kept = fewer;
                shrunk = true;
            } else {
                at += size;
            }
        }
        if !shrunk || size > 1 {
            size /= 2;
        }
    }
    kept
}

/// The invariant that a failure is about.
fn kind(what: &str) -> &str {
    what.split([':', '/']).next().unwrap_or(what)
}

fn report(seed: u64, steps: &[Step], what: &str, dummies: &Dummies) -> String {
    let kept = shrink(seed, steps, what, dummies);
    let small: Vec<Step> = kept.iter().map(|&at| steps[at].clone()).collect();
    let now = run_steps(seed, &small, dummies, false).err();
    let now = now.as_deref().unwrap_or("it no longer fails");
    let list: String = small.iter().map(|step| format!("    {step:?}\n")).collect();
    let numbers: Vec<String> = kept.iter().map(usize::to_string).collect();
    format!(
        "seed {seed}: {what}\n{:?}\nshrunk to {} of {} steps, which fail with: {now}\n{list}replay: RINGEST_SIM_SEED={seed} \
         RINGEST_SIM_KEEP={} cargo test --release --test sim -- replay --nocapture\nall of it: RINGEST_SIM_SEED={seed} cargo \
         test --release --test sim -- replay --nocapture",
        config(seed),
        kept.len(),
        steps.len(),
        numbers.join(","),
    )
}

pub fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name} is not a number: {text}")),
        Err(_) => default,
    }
}

#[test]
fn no_seed_loses_a_file_or_lands_it_twice() {
    let count = number(
        "RINGEST_SIM_SEEDS",
        if cfg!(debug_assertions) { 200 } else { 2_000 },
    );
    let first = number("RINGEST_SIM_FIRST_SEED", 1);
    let began = Instant::now();
    let next = AtomicU64::new(first);
    let stop = AtomicBool::new(false);
    let failed: Mutex<Option<String>> = Mutex::new(None);
    let total = Mutex::new(Counts::default());
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let dummies = Dummies::new();
                let mut counts = Counts::default();
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        break;
                    }
                    let (steps, ended) = run(seed, &dummies);
                    match ended {
                        Ok(more) => counts += more,
                        Err(what) => {
                            if !stop.swap(true, Ordering::Relaxed) {
                                *failed.lock().unwrap() =
                                    Some(report(seed, &steps, &what, &dummies));
                            }
                        }
                    }
                }
                *total.lock().unwrap() += counts;
            });
        }
    });
    let counts = *total.lock().unwrap();
    crate::counts::say(&format!(
        "{count} seeds from {first}, {counts}; {:.1?}",
        began.elapsed()
    ));
    if let Some(report) = failed.into_inner().unwrap() {
        panic!("{report}");
    }
    assert!(counts.events >= count * EVENTS_MIN, "a seed ended early");
}

#[test]
fn a_replay_does_what_the_seed_did() {
    let dummies = Dummies::new();
    if let Ok(seed) = std::env::var("RINGEST_SIM_SEED") {
        let seed = seed.parse().expect("RINGEST_SIM_SEED is a number");
        let (mut steps, _) = run(seed, &dummies);
        if let Ok(kept) = std::env::var("RINGEST_SIM_KEEP") {
            let kept = kept
                .split(',')
                .map(|at| at.parse::<usize>().expect("a number"));
            steps = kept.map(|at| steps[at].clone()).collect();
        }
        println!("{:?}", config(seed));
        let ended = run_steps(seed, &steps, &dummies, true);
        assert_eq!(ended, Ok(()));
        return;
    }
    for seed in 1..20 {
        let (steps, first) = run(seed, &dummies);
        let (again, second) = run(seed, &dummies);
        assert_eq!(steps, again);
        assert_eq!(format!("{first:?}"), format!("{second:?}"));
        assert_eq!(
            run_steps(seed, &steps, &dummies, false).is_ok(),
            first.is_ok()
        );
    }
}
