// Place of turn j of invocation t among the 64 · TURNS values of a workgroup. Where invocations run together (GPUs)
// neighbours take neighbouring values in every turn; where eight at a time run to the next barrier (CPU adapter) these
// eight walk a run of memory of their own.
// expects: TURNS, SUCCESSIVE
fn turn_place(t: u32, j: u32) -> u32 {
    if SUCCESSIVE { return (t / 8u * TURNS + j) * 8u + t % 8u; }
    return j * 64u + t;
}
