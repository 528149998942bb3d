// Parameters of one sample's image transformations (256 bytes), and what several kernels derive
// from them.  Depends on rng.wgsl and on the constants NX, NY, NZ.
struct PaintBox {
    start: vec3<u32>,
    fill: f32,
    side: vec3<u32>,
    unused: u32,
}

struct Sample {
    elastic_key: vec2<u32>,
    shuffle_key: vec2<u32>,
    paint_key: vec2<u32>,
    windows: u32,           // local shuffling; 0: none
    flip: u32,              // bit 0: x, 1: y, 2: z
    curve: vec4<f32>,       // control points (P1x, P1y, P2x, P2y)
    curve_kind: u32,        // 0: none, 1: rising, 2: inverted
    paint_kind: u32,        // 0: none, 1: inside the boxes, 2: outside their union
    box_count: u32,
    paint_noise: u32,       // 1: noise per voxel, 0: `fill` of the box
    boxes: array<PaintBox, 5>,
    unused: array<vec4<u32>, 2>,
}

const VOXELS: u32 = NX * NY * NZ;
const SAMPLE_GROUPS: u32 = (VOXELS + 63u) / 64u;

// (sample, voxel) of an invocation of a 64-wide group; the voxel may lie past the end.
fn place(group: u32, t: u32) -> vec2<u32> {
    let n = group / SAMPLE_GROUPS;
    return vec2<u32>(n, (group - n * SAMPLE_GROUPS) * 64u + t);
}

fn position(voxel: u32) -> vec3<u32> {
    let line = voxel / NZ;
    return vec3<u32>(line / NY, line % NY, voxel % NZ);
}

fn voxel_at(p: vec3<u32>) -> u32 {
    return (p.x * NY + p.y) * NZ + p.z;
}

// A uniform integer below `span` (at most 65535): the high word of bits * span.
fn below(bits: u32, span: u32) -> u32 {
    return ((bits >> 16u) * span + (((bits & 0xFFFFu) * span) >> 16u)) >> 16u;
}

// In local shuffling, added to the voxel whose value another one takes.
const MOVED: u32 = 0x80000000u;

struct Window {
    start: vec3<u32>,
    side: vec3<u32>,
}

// Window `index` of a sample's local shuffling: sides U{1 .. max(1, L/10)}, starts U{0 .. L-side}.
fn shuffle_window(key: vec2<u32>, index: u32) -> Window {
    let a = threefry2x32(key, vec2<u32>(index, 0u));
    let b = threefry2x32(key, vec2<u32>(index, 1u));
    let c = threefry2x32(key, vec2<u32>(index, 2u));
    var w: Window;
    w.side = 1u + vec3<u32>(below(a.x, max(1u, NX / 10u)), below(a.y, max(1u, NY / 10u)), below(b.x, max(1u, NZ / 10u)));
    w.start = vec3<u32>(below(b.y, NX - w.side.x + 1u), below(c.x, NY - w.side.y + 1u), below(c.y, NZ - w.side.z + 1u));
    return w;
}
