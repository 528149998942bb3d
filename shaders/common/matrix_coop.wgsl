// Matrix fragments on cooperative matrices: FRAG×FRAG pieces that a subgroup holds together. The kernel provides the memory
// they are loaded from, matrix_a and matrix_b of Cells (UNIT halves each), and matrix_c of f32 that they are stored to.
// expects: FragA, FragB, FragC (coop_mat types), FRAG, UNIT, A_STEP, B_STEP, C_STEP (numbers from one row in memory to the next)

// Fragment number `k` of this subgroup's sums, all zeros.
fn zero_c(k: u32) -> FragC {
    return FragC();
}

// Row by row.
fn load_a(at: u32) -> FragA {
    return coopLoadT<FragA>(&matrix_a[at / UNIT], A_STEP / UNIT);
}

// Column by column: what is a row in memory is a column of the fragment.
fn load_a_turned(at: u32) -> FragA {
    return coopLoad<FragA>(&matrix_a[at / UNIT], A_STEP / UNIT);
}

fn load_b(at: u32) -> FragB {
    return coopLoadT<FragB>(&matrix_b[at / UNIT], B_STEP / UNIT);
}

fn multiply_add(a: FragA, b: FragB, c: FragC) -> FragC {
    return coopMultiplyAdd(a, b, c);
}

fn store_c(c: FragC, at: u32) {
    let step = C_STEP;
    coopStoreT(c, &matrix_c[at], step);
}
