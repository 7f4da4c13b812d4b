//! Gradients against finite differences, values against plain operations, rows against their company.

use candle_core::{D, DType, Device, Result, Tensor, Var};
use proptest::prelude::*;

use super::*;
use crate::{Random, Segments};

fn var(random: &mut Random, shape: &[usize]) -> Var {
    Var::from_tensor(&random.tensor(shape, 1.0).unwrap()).unwrap()
}

fn values(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

/// Compares the gradient of a random weighted sum of `f()` with central differences, at every value of every variable.
fn check_gradients(name: &str, vars: &[&Var], f: impl Fn() -> Result<Tensor>) {
    const STEP: f32 = 1e-2;
    let out = f().unwrap();
    let weights = Random::new(99).tensor(out.shape().clone(), 1.0).unwrap();
    let weigh =
        |out: &Tensor| -> f64 { values(out).iter().zip(values(&weights)).map(|(x, w)| f64::from(*x) * f64::from(w)).sum() };
    let gradients = (out * &weights).unwrap().sum_all().unwrap().backward().unwrap();
    for (v, var) in vars.iter().enumerate() {
        let gradient = values(gradients.get(var).unwrap_or_else(|| panic!("{name}: variable {v} has no gradient")));
        let start = values(var);
        for i in 0..start.len() {
            let at = |change: f32| {
                let mut moved = start.clone();
                moved[i] += change;
                var.set(&Tensor::from_vec(moved, var.shape(), &Device::Cpu).unwrap()).unwrap();
                weigh(&f().unwrap())
            };
            let measured = ((at(STEP) - at(-STEP)) / f64::from(2.0 * STEP)) as f32;
            let error = (measured - gradient[i]).abs() / measured.abs().max(1.0);
            assert!(error < 1e-2, "{name}: variable {v}, value {i}: {} measured {measured}", gradient[i]);
        }
        var.set(&Tensor::from_vec(start, var.shape(), &Device::Cpu).unwrap()).unwrap();
    }
}

fn close(name: &str, a: &Tensor, b: &Tensor, limit: f32) {
    assert_eq!(a.dims(), b.dims(), "{name}");
    for (i, (x, y)) in values(a).iter().zip(values(b)).enumerate() {
        assert!((x - y).abs() <= limit * y.abs().max(1.0), "{name}, value {i}: {x} instead of {y}");
    }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let r = &mut Random::new(1);
    let (x, w, wt, b) = (var(r, &[5, 6]), var(r, &[6, 4]), var(r, &[4, 6]), var(r, &[4]));
    check_gradients("linear", &[&x, &w], || linear(&x, &w, None));
    check_gradients("linear with bias", &[&x, &w, &b], || linear(&x, &w, Some(&b)));
    check_gradients("linear_t", &[&x, &wt, &b], || linear_t(&x, &wt, Some(&b)));
    let (scale, shift) = (var(r, &[6]), var(r, &[6]));
    check_gradients("rms_norm", &[&x, &scale], || rms_norm(&x, &scale, 1e-5));
    check_gradients("layer_norm", &[&x, &scale, &shift], || layer_norm(&x, &scale, &shift, 1e-5));
    check_gradients("swiglu", &[&x], || swiglu(&x));
    check_gradients("gelu", &[&x], || gelu(&x, Gelu::Erf));
    check_gradients("gelu with tanh", &[&x], || gelu(&x, Gelu::Tanh));
    check_gradients("cross_entropy", &[&x], || cross_entropy(&x, &[0, 5, 2, 3, 3], &[1.0, 0.5, 0.0, 2.0, 1.0]));
    let one = var(r, &[5, 1]);
    check_gradients("binary_cross_entropy", &[&one], || {
        binary_cross_entropy(&one, &[1.0, 0.0, 0.3, 1.0, 0.0], &[1.0, 2.0, 1.0, 0.0, 0.5])
    });
    let segments = Segments::of_lengths([2, 0, 3]);
    check_gradients("segment_mean", &[&x], || segment_mean(&x, &segments, |row| row != 3));
    check_gradients("select_rows", &[&x], || select_rows(&x, &[4, 0, 4]));
    check_gradients("l2_normalise", &[&x], || l2_normalise(&x));
    let y = var(r, &[5, 6]);
    check_gradients("cosine_loss", &[&x, &y], || cosine_loss(&x, &y));
    check_gradients("mse_loss", &[&x, &y], || mse_loss(&x, &y));
}

fn rope(head: usize) -> Rope {
    let frequencies: Vec<f32> = (0..head / 2).map(|i| 10_000f32.powf(-2.0 * i as f32 / head as f32)).collect();
    Rope::new(&frequencies, 256)
}

fn how(lengths: &[usize], heads: usize, kv_heads: usize, head: usize, causal: bool, turned: bool) -> Attention {
    let segments = Segments::of_lengths(lengths.iter().copied());
    Attention { segments, heads, kv_heads, head, causal, rope: turned.then(|| rope(head)) }
}

#[test]
fn attention_has_the_gradients_of_finite_differences() {
    for (heads, kv_heads, causal, turned) in [(2, 1, true, true), (2, 2, false, false), (3, 3, true, false), (4, 2, false, true)]
    {
        let how = how(&[3, 0, 4], heads, kv_heads, 4, causal, turned);
        let x = var(&mut Random::new(3), &[7, (heads + 2 * kv_heads) * 4]);
        check_gradients(&format!("attention {heads}/{kv_heads} causal {causal} rope {turned}"), &[&x], || attention(&x, &how));
    }
}

#[test]
fn attention_is_that_of_plain_operations_across_blocks() {
    for (lengths, causal, turned) in [(&[130, 1, 64][..], true, true), (&[65, 7], false, false), (&[128], true, false)] {
        let how = how(lengths, 4, 2, 8, causal, turned);
        let rows: usize = lengths.iter().sum();
        let x = Random::new(4).tensor((rows, 64), 1.0).unwrap();
        let all = x.reshape((rows, 8, 8)).unwrap();
        let positions = how.segments.positions();
        let turn = |x: Tensor| if turned { rope(8).turn_tensor(&x, &positions).unwrap() } else { x };
        let q = (turn(all.narrow(1, 0, 4).unwrap()) / 8f64.sqrt()).unwrap();
        let (k, v) = (turn(all.narrow(1, 4, 2).unwrap()), all.narrow(1, 6, 2).unwrap());
        let parts: Vec<Tensor> = how
            .segments
            .iter()
            .map(|rows| {
                let of = |x: &Tensor| x.narrow(0, rows.start, rows.len()).unwrap();
                attend(&of(&q), &of(&k), &of(&v), causal).unwrap()
            })
            .collect();
        close("attention", &attention(&x, &how).unwrap(), &Tensor::cat(&parts, 0).unwrap(), 2e-6);
    }
}

#[test]
fn values_are_those_of_plain_operations() {
    let r = &mut Random::new(5);
    let x = r.tensor((9, 40), 2.0).unwrap();
    let (w, b) = (r.tensor(40, 1.0).unwrap(), r.tensor(40, 1.0).unwrap());
    let mean = x.mean_keepdim(D::Minus1).unwrap();
    let centred = x.broadcast_sub(&mean).unwrap();
    let deviation = (centred.sqr().unwrap().mean_keepdim(D::Minus1).unwrap() + 1e-5).unwrap().sqrt().unwrap();
    let expected = centred.broadcast_div(&deviation).unwrap().broadcast_mul(&w).unwrap().broadcast_add(&b).unwrap();
    close("layer_norm", &layer_norm(&x, &w, &b, 1e-5).unwrap(), &expected, 2e-6);
    let rms = (x.sqr().unwrap().mean_keepdim(D::Minus1).unwrap() + 1e-5).unwrap().sqrt().unwrap();
    let expected = x.broadcast_div(&rms).unwrap().broadcast_mul(&w).unwrap();
    close("rms_norm", &rms_norm(&x, &w, 1e-5).unwrap(), &expected, 2e-6);
    let expected = (x.narrow(1, 0, 20).unwrap().contiguous().unwrap().silu().unwrap() * x.narrow(1, 20, 20).unwrap()).unwrap();
    close("swiglu", &swiglu(&x).unwrap(), &expected, 2e-6);
    close("gelu with tanh", &gelu(&x, Gelu::Tanh).unwrap(), &x.gelu().unwrap(), 2e-6);
    let wide = x.to_dtype(DType::F64).unwrap().gelu_erf().unwrap().to_dtype(DType::F32).unwrap();
    for (ours, exact) in values(&gelu(&x, Gelu::Erf).unwrap()).iter().zip(values(&wide)) {
        assert!((ours - exact).abs() <= 1e-6, "gelu {ours} instead of {exact}");
    }
    let weight = r.tensor((40, 12), 1.0).unwrap();
    close("linear", &linear(&x, &weight, None).unwrap(), &x.matmul(&weight).unwrap(), 1e-5);
    close(
        "linear_t",
        &linear_t(&x, &weight.t().unwrap().contiguous().unwrap(), None).unwrap(),
        &x.matmul(&weight).unwrap(),
        1e-5,
    );
}

#[test]
fn frozen_weights_get_no_gradient() {
    let r = &mut Random::new(6);
    let (x, w) = (var(r, &[3, 4]), r.tensor((4, 2), 1.0).unwrap());
    let gradients = linear(&x, &w, None).unwrap().sum_all().unwrap().backward().unwrap();
    assert!(gradients.get(&x).is_some() && gradients.get(&w).is_none());
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let zeros = |a: usize, b: usize| Tensor::zeros((a, b), DType::F32, &Device::Cpu).unwrap();
    assert!(linear(&zeros(2, 3), &zeros(4, 5), None).is_err());
    assert!(rms_norm(&zeros(2, 3), &zeros(1, 4).flatten_all().unwrap(), 1e-5).is_err());
    assert!(swiglu(&zeros(2, 3)).is_err());
    assert!(cross_entropy(&zeros(2, 3), &[0, 3], &[1.0, 1.0]).is_err());
    assert!(binary_cross_entropy(&zeros(2, 1), &[0.0], &[1.0]).is_err());
    assert!(attention(&zeros(3, 12), &how(&[2], 1, 1, 4, true, true)).is_err());
    assert!(segment_mean(&zeros(2, 3), &Segments::of_lengths([3]), |_| true).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    /// Bits of a row: alone, in company, at another place.
    #[test]
    fn a_row_of_a_product_does_not_depend_on_its_company(
        rows in 1usize..70,
        inputs in prop::sample::select(vec![1usize, 2, 3, 16, 31, 64, 256, 513, 768]),
        outputs in prop::sample::select(vec![1usize, 2, 3, 8, 31, 64, 65, 128, 129, 130, 200, 512]),
        transposed: bool,
        seed: u64,
    ) {
        let r = &mut Random::new(seed);
        let x = r.tensor((rows, inputs), 1.0).unwrap();
        let w = r.tensor(if transposed { (outputs, inputs) } else { (inputs, outputs) }, 1.0).unwrap();
        let product = |x: &Tensor| values(&if transposed { linear_t(x, &w, None) } else { linear(x, &w, None) }.unwrap());
        let all = product(&x);
        let company = r.tensor((71, inputs), 1.0).unwrap();
        for row in [0, rows / 2, rows - 1] {
            let alone = x.narrow(0, row, 1).unwrap();
            let expected = &all[row * outputs..][..outputs];
            prop_assert_eq!(&product(&alone)[..], expected);
            let among = product(&Tensor::cat(&[&company, &alone], 0).unwrap());
            prop_assert_eq!(&among[71 * outputs..], expected);
        }
    }

    #[test]
    fn a_segment_of_attention_does_not_depend_on_its_company(
        lengths in prop::collection::vec(1usize..40, 1..6),
        causal: bool,
        seed: u64,
    ) {
        let rows: usize = lengths.iter().sum();
        let x = Random::new(seed).tensor((rows, 48), 1.0).unwrap();
        let all = values(&attention(&x, &how(&lengths, 4, 2, 6, causal, true)).unwrap());
        let segments = Segments::of_lengths(lengths.iter().copied());
        for range in segments.iter() {
            let own = x.narrow(0, range.start, range.len()).unwrap();
            let alone = values(&attention(&own, &how(&[range.len()], 4, 2, 6, causal, true)).unwrap());
            prop_assert_eq!(&all[range.start * 24..range.end * 24], &alone[..]);
        }
    }
}
