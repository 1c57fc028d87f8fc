//! Replays every kept input, what fuzzing has found first, and holds the kept ones together: each target has some,
//! and they stay small.

use std::{fs, path::PathBuf};

use super::{Mutator, TARGETS, seeds, target};

/// What a clone of the repository may have to carry, in bytes.
const CORPUS_MAX: usize = 800 * 1024;

fn kept(folder: &str, target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(folder).join(target);
    let mut paths: Vec<_> =
        fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// Says which input it was when a target panics.
struct Naming<'a>(&'a PathBuf);

impl Drop for Naming<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("on the input {}", self.0.display());
        }
    }
}

fn replay(folder: &str) {
    for (name, target) in TARGETS {
        for (path, input) in kept(folder, name) {
            let _naming = Naming(&path);
            target(&input);
        }
    }
}

#[test]
fn what_fuzzing_has_found_stays_mended() {
    replay("regressions");
}

#[test]
fn every_kept_input_is_borne() {
    replay("corpus");
}

#[test]
fn every_target_has_inputs_and_they_stay_small() {
    let mut bytes = 0;
    for (name, _) in TARGETS {
        let inputs = kept("corpus", name);
        assert!(inputs.len() >= 3, "{name} has {} inputs", inputs.len());
        bytes += inputs.iter().map(|(_, input)| input.len()).sum::<usize>();
    }
    assert!(bytes < CORPUS_MAX, "{bytes} bytes are kept: minimise them as fuzz/README.md says");
}

#[test]
fn every_seed_is_borne() {
    for (name, target) in TARGETS {
        let seeds = seeds(name);
        assert!(seeds.len() >= 3, "{name}");
        for seed in &seeds {
            target(seed);
        }
    }
    assert!(target("nothing").is_none());
}

#[test]
fn the_driver_finds_what_panics_and_hands_over_its_input() {
    let mut mutator = Mutator::new(7, seeds);
    for number in 0..TARGETS.len() {
        assert!(mutator.run(number, 20).is_ok());
    }
}
