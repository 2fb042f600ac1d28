//! Compiles the wire definitions without a protoc binary.
use std::{error::Error, fs};

fn main() -> Result<(), Box<dyn Error>> {
    let mut files: Vec<_> = fs::read_dir("holdfast/v1")?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<_, _>>()?;
    files.sort();
    println!("cargo:rerun-if-changed=holdfast/v1");
    let set = protox::compile(&files, ["."])?;
    tonic_prost_build::configure()
        .bytes(".")
        .codec_path("crate::codec::RoomyCodec")
        .compile_fds(set)?;
    Ok(())
}
