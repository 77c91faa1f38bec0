//! The HIP runtime as data: the slice of it that a collective needs, without a header, a build
//! script or a link line.

mod table;
pub mod types;

pub use table::{MissingFunctions, Table};
