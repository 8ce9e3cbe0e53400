//! As much of `protoc` as the build scripts of dependencies ask for, so that nobody has to install it:
//! `--include_imports --include_source_info -o OUT -I FOLDER... FILE...`.

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    match run(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("protoc stand-in: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut arguments: impl Iterator<Item = String>) -> Result<(), Box<dyn std::error::Error>> {
    let (mut includes, mut files): (Vec<PathBuf>, Vec<PathBuf>) = Default::default();
    let (mut output, mut imports, mut source_info) = (None, false, false);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} wants a value"));
        match argument.as_str() {
            "--include_imports" => imports = true,
            "--include_source_info" => source_info = true,
            "-o" => output = Some(value()?),
            "-I" => includes.push(value()?.into()),
            option if option.starts_with('-') => {
                return Err(format!("{option} is unknown here").into());
            }
            file => files.push(file.into()),
        }
    }
    let output = output.ok_or("-o is missing")?;
    let mut compiler = protox::Compiler::new(includes)?;
    compiler.include_imports(imports);
    compiler.include_source_info(source_info);
    compiler.open_files(files)?;
    std::fs::write(output, compiler.encode_file_descriptor_set())?;
    Ok(())
}
