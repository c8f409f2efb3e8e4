//! How many readers, and how many files open in each: climbed to by what got done.
//!
//! ```text
//!   measure ──▶ try a step ──▶ more got done? ── yes ──▶ keep it, try the same step again
//!      ▲                            └─────────── no ───▶ go back, rest (longer each time), try another step
//!      └──────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! There is no clock and no thread here: numbers of intervals go in, a setting comes out. Throughput is noisy, and a
//! step that gains nothing must not be kept for luck. So a step is kept only if *every* interval under it was better
//! than every one before it, and the mean by more than [`GAIN`]; one interval that was not ends the trial.
//!
//! When readers mostly wait for the recorder, fewer of them leave it more of the processor: then a reader less is kept
//! unless that costs something.

use std::collections::VecDeque;
use std::mem;

/// Files that a reader has open at once until something else is found to be better.
pub const FILES: usize = 8;
/// Fewest files that are tried.
const FILES_MIN: usize = 2;
/// Most files that are tried.
pub const FILES_MAX: usize = 16;
/// Files that all readers have open together at most. Their buffers come to 64 MiB, and to twice that while large files
/// are read past the cache; their descriptors, with those of copies, are kept free of the batches.
const OPEN_FILES_MAX: usize = 128;

/// Intervals that are compared with as many.
const WINDOW: usize = 4;
/// A step is kept for a mean that is better by more than this.
const GAIN: f64 = 0.05;
/// What giving way to the recorder may cost. Less than [`GAIN`], or one step would undo the other.
const LOSS: f64 = 0.03;
/// From this share of the readers' time on, it is the recorder that they wait for.
pub const HELD_BACK: f64 = 0.25;
/// Intervals between a trial that failed and the next, at first; each failure doubles them.
const REST_MIN: u32 = 8;
/// Most of them: about a minute.
const REST_MAX: u32 = 128;

/// How many readers work, and how many files each has open at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// Readers.
    pub readers: usize,
    /// Files in flight in each.
    pub files: usize,
}

/// What an interval showed.
#[derive(Debug, Clone, Copy)]
pub struct Interval {
    /// Work done in a second, in whatever unit.
    pub rate: f64,
    /// Share of the readers' time in which they waited for the recorder, from 0 to 1.
    pub held_back: f64,
    /// Whether files waited for readers throughout. If not, readers did what there was to do, and the rate says nothing.
    pub demand: bool,
}

/// Why a setting was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It is where the search begins.
    Start,
    /// More got done.
    Throughput,
    /// The recorder was the limit, and no less got done.
    Recorder,
}

/// Finds a setting, interval by interval.
#[derive(Debug)]
pub struct Tuner {
    readers_max: usize,
    /// The best setting so far, and why it is that.
    kept: (Setting, Reason),
    trial: Option<Trial>,
    /// The last intervals under the setting of now.
    window: VecDeque<Interval>,
    /// Whether the next interval belongs to the setting before in part.
    fresh: bool,
    /// Intervals to rest after the next failure.
    rest: u32,
    /// What is left of this rest.
    resting: u32,
    /// Which of [`Step::ALL`] is next.
    turn: usize,
}

#[derive(Debug)]
struct Trial {
    setting: Setting,
    /// How it was before.
    before: Rates,
    /// Whether it is enough that no less gets done.
    gives_way: bool,
}

#[derive(Debug)]
struct Rates {
    least: f64,
    mean: f64,
    most: f64,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    MoreReaders,
    MoreFiles,
    FewerReaders,
    FewerFiles,
}

impl Step {
    /// Steps up come first: they cost nothing where they gain nothing.
    const ALL: [Step; 4] = [
        Step::MoreReaders,
        Step::MoreFiles,
        Step::FewerReaders,
        Step::FewerFiles,
    ];
}

impl Setting {
    /// The setting one step on, if there is one.
    fn after(self, step: Step, readers_max: usize) -> Option<Setting> {
        let Setting { readers, files } = self;
        let some = (readers / 4).max(1);
        let (readers, files) = match step {
            Step::MoreReaders => ((readers + some).min(readers_max), files),
            Step::MoreFiles => (readers, (files * 2).min(FILES_MAX)),
            Step::FewerReaders => ((readers - some).max(1), files),
            Step::FewerFiles => (readers, (files / 2).max(FILES_MIN)),
        };
        let next = Setting { readers, files };
        (next != self && readers * files <= OPEN_FILES_MAX).then_some(next)
    }
}

impl Rates {
    fn of(window: &VecDeque<Interval>) -> Rates {
        let rates = || window.iter().map(|seen| seen.rate);
        Rates {
            least: rates().fold(f64::INFINITY, f64::min),
            mean: rates().sum::<f64>() / window.len() as f64,
            most: rates().fold(0.0, f64::max),
        }
    }
}

impl Trial {
    /// Whether it is to be kept; `None` while that is open.
    fn judged(&self, window: &VecDeque<Interval>) -> Option<bool> {
        let now = Rates::of(window);
        let whole = window.len() == WINDOW;
        if self.gives_way {
            return whole.then_some(now.mean >= self.before.mean * (1.0 - LOSS));
        }
        if now.least <= self.before.most {
            return Some(false);
        }
        whole.then_some(now.mean > self.before.mean * (1.0 + GAIN))
    }
}

impl Tuner {
    /// Begins at `start`, and never goes beyond `readers_max`.
    pub fn new(start: Setting, readers_max: usize) -> Tuner {
        Tuner {
            readers_max,
            kept: (start, Reason::Start),
            trial: None,
            window: VecDeque::with_capacity(WINDOW),
            fresh: false,
            rest: REST_MIN,
            resting: 0,
            turn: 0,
        }
    }

    /// What to work with now.
    pub fn setting(&self) -> Setting {
        match &self.trial {
            Some(trial) => trial.setting,
            None => self.kept.0,
        }
    }

    /// The same, and why, unless it is only tried.
    pub fn settled(&self) -> Option<(Setting, Reason)> {
        self.trial.is_none().then_some(self.kept)
    }

    /// Takes in an interval under [`Tuner::setting`], which may change by it.
    pub fn observe(&mut self, seen: Interval) {
        self.resting = self.resting.saturating_sub(1);
        if mem::take(&mut self.fresh) {
            return;
        }
        if !seen.demand {
            self.window.clear();
            if self.trial.take().is_some() {
                self.fresh = true;
                self.resting = self.rest;
            }
            return;
        }
        if self.window.len() == WINDOW {
            self.window.pop_front();
        }
        self.window.push_back(seen);
        match &self.trial {
            None if self.resting == 0 && self.window.len() == WINDOW => self.begin(),
            None => {}
            Some(trial) => match trial.judged(&self.window) {
                None => {}
                Some(true) => self.keep(),
                Some(false) => self.go_back(),
            },
        }
    }

    /// Begins a trial, if there is anything to try.
    fn begin(&mut self) {
        let (now, max) = (self.kept.0, self.readers_max);
        let held_back = self.window.iter().map(|seen| seen.held_back).sum::<f64>();
        let gives_way = held_back / WINDOW as f64 >= HELD_BACK;
        let next = if gives_way {
            now.after(Step::FewerReaders, max)
        } else {
            let turns = self.turn..self.turn + Step::ALL.len();
            let mut turns = turns.map(|turn| turn % Step::ALL.len());
            turns.find_map(|turn| {
                let next = now.after(Step::ALL[turn], max)?;
                self.turn = turn;
                Some(next)
            })
        };
        let Some(setting) = next else {
            return;
        };
        self.trial = Some(Trial {
            setting,
            before: Rates::of(&self.window),
            gives_way,
        });
        self.window.clear();
        self.fresh = true;
    }

    fn keep(&mut self) {
        let Some(trial) = self.trial.take() else {
            return;
        };
        let reason = match trial.gives_way {
            true => Reason::Recorder,
            false => Reason::Throughput,
        };
        self.kept = (trial.setting, reason);
        self.rest = REST_MIN;
        // What was just seen of it is what the next step is compared with.
        self.begin();
    }

    fn go_back(&mut self) {
        let Some(trial) = self.trial.take() else {
            return;
        };
        if !trial.gives_way {
            self.turn = (self.turn + 1) % Step::ALL.len();
        }
        self.window.clear();
        self.fresh = true;
        self.resting = self.rest;
        self.rest = (self.rest * 2).min(REST_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(readers: usize, files: usize) -> Setting {
        Setting { readers, files }
    }

    /// A machine: rate and share of waiting for the recorder of each setting, and the noise on top.
    struct Machine<F> {
        tuner: Tuner,
        shows: F,
        noise: f64,
        random: u64,
        /// Every setting that it settled on.
        settled: Vec<Setting>,
        /// Intervals spent on trials.
        tried: u32,
    }

    impl<F: Fn(Setting) -> (f64, f64)> Machine<F> {
        fn new(start: Setting, readers_max: usize, shows: F) -> Machine<F> {
            Machine {
                tuner: Tuner::new(start, readers_max),
                shows,
                noise: 0.0,
                random: 1,
                settled: vec![start],
                tried: 0,
            }
        }

        fn noisy(mut self, noise: f64, seed: u64) -> Machine<F> {
            (self.noise, self.random) = (noise, seed);
            self
        }

        fn runs(&mut self, intervals: u32) -> Setting {
            for _ in 0..intervals {
                let now = self.tuner.setting();
                assert!(now.readers >= 1 && now.readers <= self.tuner.readers_max);
                assert!(now.files >= FILES_MIN && now.files <= FILES_MAX);
                assert!(now.readers * now.files <= OPEN_FILES_MAX);
                let (rate, held_back) = (self.shows)(now);
                // Knuth's MMIX generator; its upper bits.
                self.random = (self.random.wrapping_mul(6364136223846793005))
                    .wrapping_add(1442695040888963407);
                let uniform = (self.random >> 33) as f64 / (1u64 << 31) as f64;
                self.tuner.observe(Interval {
                    rate: rate * (1.0 + self.noise * (2.0 * uniform - 1.0)),
                    held_back,
                    demand: true,
                });
                match self.tuner.settled() {
                    None => self.tried += 1,
                    Some((now, _)) if self.settled.last() != Some(&now) => self.settled.push(now),
                    Some(_) => {}
                }
            }
            *self.settled.last().expect("at least the start")
        }
    }

    #[test]
    fn readers_are_added_as_long_as_each_brings_more_and_no_longer() {
        let shows = |now: Setting| (now.readers.min(6) as f64 * 100.0, 0.0);
        let mut machine = Machine::new(setting(4, 8), 16, shows);
        assert_eq!(machine.runs(40), setting(6, 8));
        assert_eq!(machine.tuner.settled().unwrap().1, Reason::Throughput);
        machine.tried = 0;
        assert_eq!(machine.runs(2000), setting(6, 8));
        assert!(machine.tried < 100, "{} intervals tried", machine.tried);
    }

    #[test]
    fn a_reader_too_many_is_taken_back_where_it_slows_the_others_down() {
        // A disk that seeks.
        let shows = |now: Setting| (1000.0 / (now.readers * now.files) as f64, 0.0);
        let mut machine = Machine::new(setting(2, 8), 4, shows);
        assert_eq!(machine.runs(500), setting(1, FILES_MIN));
    }

    #[test]
    fn more_files_in_flight_are_found_where_each_waits_long() {
        let shows = |now: Setting| ((now.readers * now.files) as f64, 0.0);
        let mut machine = Machine::new(setting(2, 8), 2, shows);
        assert_eq!(machine.runs(40), setting(2, FILES_MAX));
    }

    #[test]
    fn no_more_files_are_open_than_there_is_memory_for() {
        let shows = |now: Setting| ((now.readers * now.files) as f64, 0.0);
        // The bounds are looked at in every interval.
        let found = Machine::new(setting(8, 8), 16, shows).runs(500);
        assert_eq!(found, setting(16, 8));
    }

    /// A recorder that takes what `cap` readers bring.
    fn recorder(cap: f64) -> impl Fn(Setting) -> (f64, f64) {
        move |now| {
            let readers = now.readers as f64;
            (readers.min(cap), 1.0 - (cap / readers).min(1.0))
        }
    }

    #[test]
    fn readers_give_way_to_the_recorder_until_they_no_longer_wait_for_it() {
        let mut machine = Machine::new(setting(16, 8), 16, recorder(2.0));
        assert_eq!(machine.runs(60), setting(2, 8));
        assert_eq!(machine.tuner.settled().unwrap().1, Reason::Recorder);
        assert_eq!(machine.runs(1000), setting(2, 8));
        assert_eq!(
            machine.settled.len(),
            2,
            "settled once: {:?}",
            machine.settled
        );
    }

    #[test]
    fn the_last_reader_gives_way_to_nobody() {
        let mut machine = Machine::new(setting(2, 8), 4, recorder(0.1));
        assert_eq!(machine.runs(500), setting(1, 8));
    }

    #[test]
    fn a_reader_that_the_throughput_needs_does_not_give_way() {
        // Waiting, and yet slower without: the recorder is kept busy by two only.
        let shows = |now: Setting| match now.readers {
            1 => (80.0, 0.1),
            _ => (100.0, 0.4),
        };
        let mut machine = Machine::new(setting(2, 8), 4, shows);
        machine.runs(2000);
        assert_eq!(machine.settled, [setting(2, 8)]);
        assert!(machine.tried < 150, "{} intervals tried", machine.tried);
    }

    #[test]
    fn readers_come_back_once_the_recorder_is_the_limit_no_longer() {
        let mut tuner = Machine::new(setting(4, 8), 8, recorder(1.0));
        assert_eq!(tuner.runs(100), setting(1, 8));
        let mut faster = Machine::new(setting(1, 8), 8, recorder(6.0));
        faster.tuner = tuner.tuner;
        assert_eq!(faster.runs(1000), setting(6, 8));
    }

    #[test]
    fn noise_does_not_make_it_wander() {
        for seed in 1..=20 {
            let mut machine = Machine::new(setting(4, 8), 8, |_| (100.0, 0.0)).noisy(0.03, seed);
            machine.runs(7200);
            assert_eq!(machine.settled, [setting(4, 8)], "seed {seed}: an hour");
        }
        // It is not fooled often by much noise either, nor kept from what is worth it.
        let mut wrong = 0;
        for seed in 1..=20 {
            let mut flat = Machine::new(setting(4, 8), 8, |_| (100.0, 0.0)).noisy(0.2, seed);
            flat.runs(7200);
            wrong += flat.settled.len() - 1;
            let shows = |now: Setting| (now.readers.min(3) as f64 * 100.0, 0.0);
            let mut steep = Machine::new(setting(1, 8), 4, shows).noisy(0.1, seed);
            assert!(steep.runs(1000).readers >= 3, "seed {seed}");
        }
        assert!(wrong <= 40, "{wrong} steps for nothing in 20 hours");
    }

    #[test]
    fn without_demand_nothing_is_tried_and_a_trial_ends() {
        let mut tuner = Tuner::new(setting(4, 8), 8);
        let seen = |rate, demand| Interval {
            rate,
            held_back: 0.9,
            demand,
        };
        for _ in 0..100 {
            tuner.observe(seen(1.0, false));
        }
        assert_eq!(tuner.settled(), Some((setting(4, 8), Reason::Start)));
        for _ in 0..WINDOW {
            tuner.observe(seen(1.0, true));
        }
        assert_eq!((tuner.setting(), tuner.settled()), (setting(3, 8), None));
        // One interval is of both settings; the next has nothing to do.
        tuner.observe(seen(1.0, true));
        tuner.observe(seen(0.1, false));
        assert_eq!(tuner.settled(), Some((setting(4, 8), Reason::Start)));
    }
}
