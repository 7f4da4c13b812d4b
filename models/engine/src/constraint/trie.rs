//! Keyword lists: a token trie over the candidates.
//!
//! The answer is a sequence of candidates, each with its separator, then the end mark. A node with one child that still leads somewhere is
//! forced; at a branch only the children compete. A chosen candidate is counted out on its whole path, so that it cannot come again. The end mark is
//! a leaf like the candidates that is open only between candidates and only from the fewest keywords on.

use super::{Allowed, Constraint, ConstraintError};

/// Most candidates of one request.
const CANDIDATES_MAX: usize = 1_024;
/// Most tokens of one candidate.
const CANDIDATE_TOKENS_MAX: usize = 256;

const ROOT: usize = 0;

/// How many keywords a list has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeywordLimits {
    /// Fewest; where there are fewer candidates, all of them.
    pub min: usize,
    /// Most.
    pub max: usize,
}

#[derive(Debug)]
struct Node {
    token: u32,
    parent: usize,
    children: Vec<usize>,
    /// The candidate, or the end, that is complete here.
    leaf: Option<usize>,
    /// Leaves at or below this node that may still be chosen.
    open: usize,
    /// Best bias of those leaves.
    best: f32,
}

/// Chooses distinct candidates in order.
#[derive(Debug)]
pub struct TrieConstraint {
    nodes: Vec<Node>,
    /// Node of every candidate, the end's last; `None` for a candidate that repeats an earlier one.
    leaves: Vec<Option<usize>>,
    bias: Vec<f32>,
    weight: f32,
    limits: KeywordLimits,
    at: usize,
    picks: Vec<usize>,
    finished: bool,
    tokens: Vec<u32>,
    token_bias: Vec<f32>,
}

impl TrieConstraint {
    /// A choice among `candidates`, each the canonical tokens of its text with its separator; `end` is the tokens of the end mark.
    ///
    /// `weight` multiplies the scores that [`Constraint::observe`] brings: a child competes with its logit + weight × the best score of the
    /// candidates left below it. The end mark scores 0, a head's even odds. (The logarithm of the softmax over the children is the logit less
    /// a constant of the node, so the order is the same.)
    ///
    /// A candidate with the same tokens as an earlier one is never chosen.
    ///
    /// # Errors
    /// [`ConstraintError::Request`] for empty, overlong or too many candidates, for one that begins another, and for limits that no list can keep.
    pub fn new(candidates: &[&[u32]], end: &[u32], limits: KeywordLimits, weight: f32) -> Result<Self, ConstraintError> {
        let refuse = |why: String| Err(ConstraintError::Request(why));
        if candidates.len() > CANDIDATES_MAX {
            return refuse(format!("{} candidates are more than {CANDIDATES_MAX}", candidates.len()));
        }
        if limits.max == 0 || limits.min > limits.max {
            return refuse(format!("no list has at least {} and at most {} keywords", limits.min, limits.max));
        }
        let root = Node { token: u32::MAX, parent: ROOT, children: Vec::new(), leaf: None, open: 0, best: f32::NEG_INFINITY };
        let mut trie = Self {
            nodes: vec![root],
            leaves: Vec::with_capacity(candidates.len() + 1),
            bias: vec![0.0; candidates.len() + 1],
            weight,
            limits,
            at: ROOT,
            picks: Vec::new(),
            finished: false,
            tokens: Vec::new(),
            token_bias: Vec::new(),
        };
        for (index, tokens) in candidates.iter().chain([&end]).enumerate() {
            if tokens.is_empty() || tokens.len() > CANDIDATE_TOKENS_MAX {
                return refuse(format!(
                    "candidate {index} has {} tokens, where 1 to {CANDIDATE_TOKENS_MAX} are expected",
                    tokens.len()
                ));
            }
            trie.insert(index, tokens)?;
        }
        if let Some(node) = trie.nodes.iter().find(|node| node.leaf.is_some() && !node.children.is_empty()) {
            let index = node.leaf.unwrap_or_default();
            return refuse(format!("candidate {index} begins another one: end every candidate with a separator"));
        }
        trie.open_candidates();
        trie.take_last_if_clear();
        Ok(trie)
    }

    /// What was chosen, as indices into the candidates, in order.
    pub fn picks(&self) -> &[usize] {
        &self.picks
    }

    fn insert(&mut self, index: usize, tokens: &[u32]) -> Result<(), ConstraintError> {
        let mut at = ROOT;
        for &token in tokens {
            let child = self.nodes[at].children.iter().copied().find(|&child| self.nodes[child].token == token);
            at = child.unwrap_or_else(|| {
                let child = self.nodes.len();
                self.nodes.push(Node { token, parent: at, children: Vec::new(), leaf: None, open: 0, best: f32::NEG_INFINITY });
                self.nodes[at].children.push(child);
                child
            });
        }
        let is_end = index + 1 == self.bias.len();
        if self.nodes[at].leaf.is_none() {
            self.nodes[at].leaf = Some(index);
            self.leaves.push(Some(at));
        } else if is_end {
            return Err(ConstraintError::Request(format!(
                "candidate {} is the end mark",
                self.nodes[at].leaf.unwrap_or_default()
            )));
        } else {
            self.leaves.push(None);
        }
        Ok(())
    }

    fn end(&self) -> usize {
        self.leaves.len() - 1
    }

    /// Opens every candidate, and the end where no keyword is asked for.
    fn open_candidates(&mut self) {
        for leaf in 0..self.end() {
            self.set_open(leaf, true);
        }
        self.at_boundary();
    }

    /// Opens or closes a leaf and settles its path's counts and best biases.
    fn set_open(&mut self, leaf: usize, open: bool) {
        let Some(mut at) = self.leaves[leaf] else { return };
        if (self.nodes[at].open == 1) == open {
            return;
        }
        self.nodes[at].open = usize::from(open);
        self.nodes[at].best = if open { self.bias[leaf] } else { f32::NEG_INFINITY };
        while at != ROOT {
            at = self.nodes[at].parent;
            if open {
                self.nodes[at].open += 1;
            } else {
                self.nodes[at].open -= 1;
            }
            self.settle(at);
        }
    }

    fn settle(&mut self, at: usize) {
        let best = self.nodes[at].children.iter().map(|&child| self.nodes[child].best).fold(f32::NEG_INFINITY, f32::max);
        self.nodes[at].best = best;
    }

    fn open_children(&self) -> impl Iterator<Item = usize> {
        self.nodes[self.at].children.iter().copied().filter(|&child| self.nodes[child].open > 0)
    }

    fn only_open_child(&self) -> Option<usize> {
        let mut children = self.open_children();
        children.next().filter(|_| children.next().is_none())
    }

    /// Goes down to `child`. At a leaf the candidate is taken; where only the end is left, the list is finished.
    fn descend(&mut self, child: usize) {
        self.at = child;
        if let Some(leaf) = self.nodes[child].leaf {
            if leaf == self.end() {
                self.finished = true;
                return;
            }
            self.picks.push(leaf);
            self.set_open(leaf, false);
            self.at = ROOT;
            self.at_boundary();
        } else if self.only_end_below(child) {
            self.finished = true;
        }
    }

    fn only_end_below(&self, node: usize) -> bool {
        self.nodes[node].open == 1
            && self.leaves[self.end()].is_some_and(|end| self.nodes[end].open == 1 && self.is_below(end, node))
    }

    fn is_below(&self, mut node: usize, above: usize) -> bool {
        while node != above && node != ROOT {
            node = self.nodes[node].parent;
        }
        node == above
    }

    /// Between two keywords: ends the list that is full or out of candidates, opens the end from the fewest keywords on.
    fn at_boundary(&mut self) {
        if self.candidates_left() == 0 || self.picks.len() >= self.limits.max {
            self.finished = true;
        } else if self.picks.len() >= self.limits.min {
            self.set_open(self.end(), true);
        }
    }

    /// Takes the list's last keyword as soon as it is clear which one it is: nothing is read behind its tokens, so they are not computed.
    fn take_last_if_clear(&mut self) {
        let is_last = self.picks.len() + 1 >= self.limits.max || self.candidates_left() == 1;
        while is_last && !self.finished && self.nodes[self.at].open == 1 {
            let child = self.open_children().next().expect("an open leaf lies below an open child");
            self.descend(child);
        }
    }

    fn candidates_left(&self) -> usize {
        let end_is_open = self.leaves[self.end()].is_some_and(|end| self.nodes[end].open == 1);
        self.nodes[ROOT].open - usize::from(end_is_open)
    }
}

impl Constraint for TrieConstraint {
    fn forced(&mut self) -> Result<Vec<u32>, ConstraintError> {
        let mut run = Vec::new();
        while !self.finished {
            self.take_last_if_clear();
            let Some(child) = self.only_open_child() else { break };
            run.push(self.nodes[child].token);
            self.descend(child);
        }
        if self.finished {
            // Nothing is read behind the list's end.
            run.clear();
        }
        Ok(run)
    }

    fn allowed(&mut self) -> Result<Allowed<'_>, ConstraintError> {
        let (mut tokens, mut bias) = (std::mem::take(&mut self.tokens), std::mem::take(&mut self.token_bias));
        tokens.clear();
        bias.clear();
        for child in self.open_children() {
            tokens.push(self.nodes[child].token);
            bias.push(self.nodes[child].best);
        }
        (self.tokens, self.token_bias) = (tokens, bias);
        Ok(Allowed::Few { tokens: &self.tokens, bias: &self.token_bias })
    }

    fn advance(&mut self, token: u32) -> Result<(), ConstraintError> {
        let child = self.open_children().find(|&child| self.nodes[child].token == token);
        let child = child.filter(|_| !self.finished).ok_or(ConstraintError::NotAllowed(token))?;
        self.descend(child);
        self.take_last_if_clear();
        Ok(())
    }

    fn finished(&self) -> bool {
        self.finished
    }

    fn observe(&mut self, scores: &[f32]) {
        assert_eq!(scores.len(), self.end(), "one score per candidate");
        for (leaf, &score) in scores.iter().enumerate() {
            let score = score * self.weight;
            self.bias[leaf] = if score.is_finite() { score } else { 0.0 };
        }
        for leaf in 0..self.end() {
            if let Some(mut at) = self.leaves[leaf].filter(|&at| self.nodes[at].open == 1) {
                self.nodes[at].best = self.bias[leaf];
                while at != ROOT {
                    at = self.nodes[at].parent;
                    self.settle(at);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
