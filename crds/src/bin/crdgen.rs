//! Prints what is generated from the types: `crdgen` the definition as YAML, `crdgen reference` the field reference.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let text = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => connector_crds::crd_yaml(),
        ["reference"] => connector_crds::field_reference(),
        _ => {
            eprintln!("usage: crdgen [reference]");
            return ExitCode::from(2);
        }
    };
    print!("{text}");
    ExitCode::SUCCESS
}
