//! Fuzzes without a tool: kept inputs, changed at random, into every target of `phalanx::fuzzing`.
//! `cargo run --features fuzzing --example fuzz -- run --seconds 60`. With coverage: `fuzz/README.md`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use phalanx::fuzzing::{Mutator, TARGETS, seeds, target};

const HELP: &str = "\
fuzz run [--seconds N] [--seed N] [--target NAME]   runs kept inputs, changed at random; 60 s by default
fuzz replay NAME FILE…                              runs one target on files
fuzz seeds                                          writes fuzz/corpus/NAME/seed-… anew";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args.as_slice() {
        ["run", options @ ..] => run(options),
        ["replay", name, files @ ..] => replay(name, files),
        ["seeds"] => write_seeds(),
        _ => Err(HELP.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("{text}");
            ExitCode::FAILURE
        }
    }
}

fn folder(kind: &str, target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(kind).join(target)
}

fn kept(name: &str) -> Vec<Vec<u8>> {
    let files = fs::read_dir(folder("corpus", name)).into_iter().flatten().flatten();
    let mut paths: Vec<_> = files.map(|file| file.path()).collect();
    paths.sort(); // a seed must mean the same on every file system
    let mut inputs: Vec<_> = paths.into_iter().filter_map(|path| fs::read(path).ok()).collect();
    inputs.extend(seeds(name));
    inputs
}

fn run(options: &[&str]) -> Result<(), String> {
    let (mut seconds, mut seed, mut only) = (60.0, 0, None);
    for option in options.chunks(2) {
        match option {
            ["--seconds", value] => seconds = value.parse().map_err(|_| format!("no seconds: {value}"))?,
            ["--seed", value] => seed = value.parse().map_err(|_| format!("no seed: {value}"))?,
            ["--target", value] if target(value).is_some() => only = Some(*value),
            other => return Err(format!("unknown: {}\n{HELP}", other.join(" "))),
        }
    }
    let mut mutator = Mutator::new(seed, kept);
    let targets: Vec<_> =
        TARGETS.iter().enumerate().filter(|(_, (name, _))| only.is_none_or(|only| only == *name)).collect();
    let whole = Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
    let share = whole / u32::try_from(targets.len()).unwrap_or(1);
    let mut all = 0_u64;
    for (number, (name, _)) in targets {
        let (begun, mut runs) = (now(), 0_u64);
        while begun.elapsed() < share {
            mutator.run(number, 16).map_err(|fault| {
                let path = keep(fault.target, &fault.input);
                let path = path.map_or_else(|error| error.to_string(), |path| path.display().to_string());
                format!(
                    "{name}: {}\nrepeat it: cargo run --features fuzzing --example fuzz -- replay {name} {path}",
                    fault.message
                )
            })?;
            runs += 16;
        }
        all += runs;
        let rate = u128::from(runs) * 1_000 / begun.elapsed().as_millis().max(1);
        println!("{name}: {runs} executions, {rate} a second");
    }
    println!("{all} executions in all, seed {seed}: no fault");
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "how long a run may last is the operator's affair")]
fn now() -> Instant {
    Instant::now()
}

fn keep(name: &str, input: &[u8]) -> std::io::Result<PathBuf> {
    let folder = folder("artifacts", name);
    fs::create_dir_all(&folder)?;
    let path = folder.join(format!("crash-{:016x}", hash(input)));
    fs::write(&path, input)?;
    Ok(path)
}

/// FNV-1a: a name for bytes.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn replay(name: &str, files: &[&str]) -> Result<(), String> {
    let target = target(name).ok_or_else(|| format!("no target {name}"))?;
    for file in files {
        let input = fs::read(file).map_err(|error| format!("{file}: {error}"))?;
        target(&input);
        println!("{file}: no fault");
    }
    Ok(())
}

fn write_seeds() -> Result<(), String> {
    for (name, _) in TARGETS {
        let folder = folder("corpus", name);
        fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
        for (number, seed) in seeds(name).iter().enumerate() {
            fs::write(folder.join(format!("seed-{number:02}")), seed).map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}
