// Squared distances between rows of features, to start from: one invocation a distance.
//
//   semgen bench wgsl FILE.wgsl --op knn_distance --shape 1024,1024,512
//
// The numbers of the shape are constants, added behind the end of this file: ROWS, COLS, WIDTH.

@group(0) @binding(0) var<storage, read> a: array<f32>;                   // [ROWS, WIDTH]
@group(0) @binding(1) var<storage, read> b: array<f32>;                   // [COLS, WIDTH]
@group(0) @binding(2) var<storage, read_write> distances: array<f32>;     // [ROWS, COLS]

const LANES: u32 = 64u;

// The number of this invocation.
fn item(group: vec3<u32>, count: vec3<u32>, lane: u32) -> u32 {
    return (group.x + group.y * count.x) * LANES + lane;
}

// groups forward: div_up(ROWS * COLS, 64)
@compute @workgroup_size(LANES)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = item(group, count, lane);
    if i < ROWS * COLS {
        let row = i / COLS * WIDTH;
        let col = i % COLS * WIDTH;
        var sum = 0.0;
        for (var k = 0u; k < WIDTH; k++) {
            let difference = a[row + k] - b[col + k];
            sum += difference * difference;
        }
        distances[i] = sum;
    }
}
