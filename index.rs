//! s
use crate::{MarketDir,MarketError,snapshot::Near};use rusqlite::Connection;
/// s
#[derive(Default)] pub struct IndexOptions; /// s
pub struct IndexProgress; /// s
pub struct IndexReport;
/// s
pub fn build_index(){}
#[derive(Debug)]
pub(crate) struct TermIndex;
impl TermIndex{ pub(crate) fn open(_d:&MarketDir,_c:&Connection)->Result<Self,MarketError>{todo!()}
pub(crate) fn near(&self,_v:&[f32],_k:usize)->Result<Vec<Near>,MarketError>{todo!()}
pub(crate) fn near_exact(&self,_v:&[f32],_k:usize)->Result<Vec<Near>,MarketError>{todo!()} }
