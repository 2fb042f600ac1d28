//! Writes the bench's data sets: `holdfast-dataset tree|image|text|many|… SEED PATH [SIZE] [VERSION]`.

use anyhow::{Context as _, bail};
use holdfast_integration::dataset::{edit, image, long_text, many, tree};
use std::{path::Path, time::Instant};

const USAGE: &str = "usage:
  holdfast-dataset tree SEED DIR [FILES]              a new tree of source-code-like files
  holdfast-dataset edit SEED DIR FILES VERSION        changes about 1 % of its files
  holdfast-dataset image SEED FILE [PAGES]            a new image of 8 KiB pages
  holdfast-dataset rewrite SEED FILE PAGES VERSION    rewrites 1 % of its pages
  holdfast-dataset text SEED FILE [BYTES]             a new long text
  holdfast-dataset insert SEED FILE COUNT VERSION     inserts COUNT short texts into it
  holdfast-dataset many SEED DIR [FILES]              a new tree of very many tiny files";

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [what, seed, path, rest @ ..] = args.as_slice() else {
        bail!("{USAGE}")
    };
    let seed = seed.parse().context("SEED is a number")?;
    let number = |at: usize| -> anyhow::Result<Option<u64>> {
        rest.get(at)
            .map(|text| text.parse().with_context(|| format!("{text} is not a number")))
            .transpose()
    };
    let path = Path::new(path);
    let start = Instant::now();
    let said = match what.as_str() {
        "tree" => {
            let files = number(0)?.map_or(tree::Spec::large(seed).files, |files| files as usize);
            serde_json::to_string(&tree::Maker::new(tree::Spec { seed, files }).make(path)?)?
        }
        "edit" => {
            let (Some(files), Some(version)) = (number(0)?, number(1)?) else {
                bail!("{USAGE}")
            };
            let maker = tree::Maker::new(tree::Spec {
                seed,
                files: files as usize,
            });
            serde_json::to_string(&edit::edit(&maker, path, version)?)?
        }
        "image" => {
            let pages = number(0)?.unwrap_or(image::Spec::large(seed).pages);
            image::make(image::Spec { seed, pages }, path)?;
            format!("{{\"bytes\":{}}}", pages * image::PAGE as u64)
        }
        "rewrite" => {
            let (Some(pages), Some(version)) = (number(0)?, number(1)?) else {
                bail!("{USAGE}")
            };
            format!(
                "{{\"bytes\":{}}}",
                image::rewrite(image::Spec { seed, pages }, path, 0.01, version)?
            )
        }
        "text" => {
            let bytes = number(0)?.unwrap_or(long_text::Spec::large(seed).bytes);
            long_text::Maker::new(long_text::Spec { seed, bytes }).make(path)?;
            format!("{{\"bytes\":{bytes}}}")
        }
        "insert" => {
            let (Some(count), Some(version)) = (number(0)?, number(1)?) else {
                bail!("{USAGE}")
            };
            let bytes = std::fs::metadata(path)?.len();
            let maker = long_text::Maker::new(long_text::Spec { seed, bytes });
            format!("{{\"bytes\":{}}}", maker.insert(path, count as usize, version)?)
        }
        "many" => {
            let files = number(0)?.unwrap_or(many::Spec::large(seed).files);
            format!("{{\"bytes\":{}}}", many::make(many::Spec { seed, files }, path)?)
        }
        _ => bail!("{USAGE}"),
    };
    println!("{said}");
    eprintln!("{what}: {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}
