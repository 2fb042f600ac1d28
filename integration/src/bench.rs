//! Holdfast beside its peers on the same data, in the same run, on the same disk: ratios count.

pub mod daily;
pub mod limits;
pub mod load;
pub mod measure;
pub mod ours;
pub mod peers;
mod pgbackrest;
mod place;
pub mod postgres;
pub mod replay;
pub mod report;
pub mod run;
mod sets;
