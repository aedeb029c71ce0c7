/** `overlaybd export`: the disk of an image as a raw file. */
import { exportDisk } from "../image/export.ts";
import { openSource } from "../image/source.ts";
import { defineCommand } from "./_command.ts";
import { imageArgs, imageOptions } from "./_image.ts";

export const command = defineCommand({
  meta: { name: "export", description: "Write the merged disk of an image to a raw, sparse file" },
  args: {
    source: {
      type: "positional",
      description: "Image config, layer file, or reference (HOST/NAME:TAG, oci:DIRECTORY:TAG)",
      required: true,
    },
    output: { type: "positional", description: "File to write; replaced when complete", required: true },
    ...imageArgs,
  },
  async run({ args }) {
    const image = await openSource(args.source, await imageOptions(args));
    try {
      await exportDisk(image, args.output, process.stderr.isTTY ? showProgress : () => {});
    } finally {
      await image.close();
    }
  },
});

function showProgress(done: number): void {
  process.stderr.write(`\r${Math.floor(done * 100)} %${done === 1 ? "\n" : ""}`);
}
