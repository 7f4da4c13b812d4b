//! Fewer dimensions with the same dot products: the leading eigenvectors of the second moments.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::params::normal;

const ROUNDS: usize = 40;

/// The `to` directions that keep most of `rows`' squared length, `[to][from]`, orthonormal. By orthogonal iteration.
pub(crate) fn principal_directions(rows: &[Vec<f32>], to: usize) -> Vec<Vec<f32>> {
    let from = rows.first().map_or(0, Vec::len);
    let mut moments = vec![0f32; from * from];
    for row in rows {
        for (x, into) in row.iter().zip(moments.chunks_exact_mut(from)) {
            into.iter_mut().zip(row).for_each(|(m, y)| *m += x * y);
        }
    }
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut basis: Vec<Vec<f32>> = (0..to.min(from)).map(|_| (0..from).map(|_| normal(&mut rng)).collect()).collect();
    for _ in 0..ROUNDS {
        for vector in &mut basis {
            *vector = moments.chunks_exact(from).map(|row| dot(row, vector)).collect();
        }
        orthonormalise(&mut basis);
    }
    basis
}

/// `row` in terms of `basis`, of unit length.
pub(crate) fn project(basis: &[Vec<f32>], row: &[f32]) -> Vec<f32> {
    unit(basis.iter().map(|direction| dot(direction, row)).collect())
}

fn orthonormalise(basis: &mut [Vec<f32>]) {
    for i in 0..basis.len() {
        let (before, rest) = basis.split_at_mut(i);
        let vector = &mut rest[0];
        for _ in 0..2 {
            for other in before.iter() {
                let share = dot(other, vector);
                vector.iter_mut().zip(other).for_each(|(x, y)| *x -= share * y);
            }
        }
        let length = dot(vector, vector).sqrt().max(1e-20);
        vector.iter_mut().for_each(|x| *x /= length);
    }
}

pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; 16];
    let (a, b) = (a.chunks_exact(16), b.chunks_exact(16));
    let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(x, y)| x * y).sum();
    for (a, b) in a.zip(b) {
        for i in 0..16 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f32>() + rest
}

pub(crate) fn unit(mut row: Vec<f32>) -> Vec<f32> {
    let length = dot(&row, &row).sqrt().max(1e-12);
    row.iter_mut().for_each(|x| *x /= length);
    row
}

#[cfg(test)]
mod tests {
    use rand::RngExt;

    use super::*;

    #[test]
    fn rows_within_a_plane_keep_their_cosines_in_two_dimensions() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let plane = [[0.6, 0.0, 0.8, 0.0], [0.0, 1.0, 0.0, 0.0f32]];
        let rows: Vec<Vec<f32>> = (0..50)
            .map(|_| {
                let (a, b) = (rng.random::<f32>() - 0.3, rng.random::<f32>() - 0.5);
                unit((0..4).map(|i| a * plane[0][i] + b * plane[1][i]).collect())
            })
            .collect();
        let basis = principal_directions(&rows, 2);
        for pair in rows.windows(2) {
            let (before, after) = (dot(&pair[0], &pair[1]), dot(&project(&basis, &pair[0]), &project(&basis, &pair[1])));
            assert!((before - after).abs() < 1e-3, "{before} became {after}");
        }
    }
}
