// Batch-norm statistics of a convolution's output: count, mean and sum of squared differences from it of each run
// of rows and each channel, for kernels whose tiles do not come by them on the way.
// uses: grid
// expects: Output (f32 or f16, as stored)
struct Params { rows: u32, channels: u32, run: u32, partials: u32, first_partial: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> output: array<Output>;             // [rows, channels]
@group(0) @binding(2) var<storage, read_write> statistics: array<f32>;      // [all partials, 3, channels]

@compute @workgroup_size(64)
fn statistics_of_rows(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let id = flat_group(wg, count) * 64u + t;
    if id < p.partials * p.channels {
        let channel = id % p.channels;
        let partial = id / p.channels;
        let first = partial * p.run;
        let last = min(first + p.run, p.rows);
        let n = f32(last - first);
        var sum = 0.0;
        for (var r = first; r < last; r++) { sum += f32(output[r * p.channels + channel]); }
        let mean = sum / n;
        var squares = 0.0;
        for (var r = first; r < last; r++) {
            let d = f32(output[r * p.channels + channel]) - mean;
            squares += d * d;
        }
        let to = (p.first_partial + partial) * 3u * p.channels + channel;
        statistics[to] = n;
        statistics[to + p.channels] = mean;
        statistics[to + 2u * p.channels] = squares;
    }
}
