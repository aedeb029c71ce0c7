/** A process to be killed: writes to the pair named on its command line for ever and says what it was promised. */
import { openWritableLayer } from "../../src/format/lsmt/pair.ts";

const layer = openWritableLayer(process.argv[2], process.argv[3]);
const sectors = layer.size / 512;
for (let stamp = 1; ; stamp++) {
  layer.write((stamp % sectors) * 512, new Uint8Array(new Uint32Array(128).fill(stamp).buffer));
  if (stamp % 50 === 0) {
    layer.flush();
    process.stdout.write(`${stamp}\n`);
  }
}
