// Matrix fragments in plain arithmetic, the twin of matrix_coop.wgsl: factors are places in memory, and each of LANES lanes
// computes its share of a product from there. Slow, but any adapter runs it, with the tiling and the indexing of the real ones.
// expects: FRAG, LANES, SHARE (FRAG² / LANES), SUMS (SHARE · fragments), A_STEP, B_STEP, C_STEP; a_value(i), b_value(i): number i of matrix_a
// and matrix_b
struct FragA { at: u32, row: u32, column: u32 }
struct FragB { at: u32 }
struct FragC { at: u32 }

var<private> lane: u32;
// SHARE · FRAG, but no constant: unrolled, the products of a large tile take a minute to compile.
var<private> turns: u32;
// This lane's share of all sums.
var<private> sums: array<f32, SUMS>;

fn zero_c(k: u32) -> FragC {
    for (var i = 0u; i < SHARE; i++) { sums[k * SHARE + i] = 0.0; }
    return FragC(k * SHARE);
}

fn load_a(at: u32) -> FragA {
    return FragA(at, A_STEP, 1u);
}

fn load_a_turned(at: u32) -> FragA {
    return FragA(at, 1u, A_STEP);
}

fn load_b(at: u32) -> FragB {
    return FragB(at);
}

fn multiply_add(a: FragA, b: FragB, c: FragC) -> FragC {
    for (var turn = 0u; turn < turns; turn++) {
        let e = turn / FRAG * LANES + lane;
        let k = turn % FRAG;
        sums[c.at + turn / FRAG] += a_value(a.at + e / FRAG * a.row + k * a.column) * b_value(b.at + k * B_STEP + e % FRAG);
    }
    return c;
}

fn store_c(c: FragC, at: u32) {
    for (var i = 0u; i < SHARE; i++) {
        let e = i * LANES + lane;
        matrix_c[at + e / FRAG * C_STEP + e % FRAG] = sums[c.at + i];
    }
}
