//! A hundred days of an image of which 1 % is rewritten each day: what each day stores, and how the
//! patches that gather in segments slow a restore down. Ours alone: the bound on chunks in one segment is
//! chosen by this.

use super::{
    ours::Holdfast,
    peers::{Step, Tool as _},
    place::Place,
    run::Plan,
};
use crate::dataset::image;
use std::{fs, path::Path, time::Instant};

/// Days.
const DAYS: u64 = 100;
/// Days after which the latest snapshot is restored.
const RESTORED: [u64; 7] = [1, 10, 25, 50, 64, 75, 100];

/// One day.
#[derive(Debug)]
struct Day {
    stored: u64,
    seconds: f64,
}

/// Runs it and prints a table.
///
/// # Errors
/// When something fails, or a restore differs from the image.
pub fn run(plan: &Plan) -> anyhow::Result<()> {
    let spec = image::Spec {
        seed: plan.seed,
        pages: ((image::Spec::large(0).pages as f64 * plan.scale / 4.0) as u64).max(8192),
    };
    let place = Place::take(plan, spec.bytes(), spec.bytes())?;
    let source = place.dir.join("image");
    image::make(spec, &source)?;
    let mut holdfast = Holdfast::new(&source, &place.dir);
    holdfast.prepare()?;
    holdfast.backup(Step::First)?;
    let mut days = Vec::new();
    println!(
        "{} MB image, 1 % of its pages rewritten each day",
        spec.bytes() / 1_000_000
    );
    println!(
        "| day | changed MB | stored MB a day, since the row before | backup s | restore s |\n| --- | --- | --- | --- | --- |"
    );
    let mut reported = 0;
    for day in 1..=DAYS {
        let changed = image::rewrite(spec, &source, 0.01, day)?;
        let before = holdfast.stored();
        let start = Instant::now();
        holdfast.backup(Step::Changed)?;
        days.push(Day {
            stored: holdfast.stored() - before,
            seconds: start.elapsed().as_secs_f64(),
        });
        if RESTORED.contains(&day) {
            let seconds = restore(&mut holdfast, &place.restores, &source)?;
            let since = &days[reported..];
            let per_day = |of: fn(&Day) -> f64| since.iter().map(of).sum::<f64>() / since.len() as f64;
            println!(
                "| {day} | {:.1} | {:.1} | {:.2} | {seconds:.2} |",
                changed as f64 / 1e6,
                per_day(|day| day.stored as f64) / 1e6,
                per_day(|day| day.seconds),
            );
            reported = days.len();
        }
    }
    holdfast.finish()
}

fn restore(holdfast: &mut Holdfast, below: &Path, source: &Path) -> anyhow::Result<f64> {
    let to = below.join("to");
    fs::create_dir_all(&to)?;
    let (cost, restored) = holdfast.restore(&to)?;
    let same = std::process::Command::new("cmp")
        .arg(source)
        .arg(&restored)
        .status()?;
    anyhow::ensure!(same.success(), "the restore differs from the image");
    fs::remove_dir_all(&to)?;
    Ok(cost.wall_s)
}
