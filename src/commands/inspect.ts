/** `overlaybd inspect`: what an image or a layer is made of. */
import { type ImageReport, inspectImage } from "../image/inspect.ts";
import { openSource } from "../image/source.ts";
import { defineCommand } from "./_command.ts";
import { imageArgs, imageOptions } from "./_image.ts";
import { formatBytes, formatTable } from "./_text.ts";

export const command = defineCommand({
  meta: {
    name: "inspect",
    description: "Show layers, sizes, segments, compression and holes of an image or a layer",
  },
  args: {
    source: {
      type: "positional",
      description: "Layer file, image config, or reference (HOST/NAME:TAG, oci:DIRECTORY:TAG)",
      required: true,
    },
    json: { type: "boolean", description: "Print JSON: all fields, sizes in bytes", default: false },
    ...imageArgs,
  },
  async run({ args }) {
    const image = await openSource(args.source, await imageOptions(args));
    try {
      const report = await inspectImage(image);
      process.stdout.write(`${args.json ? JSON.stringify(report, null, 2) : describe(report)}\n`);
    } finally {
      await image.close();
    }
  },
});

function describe(report: ImageReport): string {
  const head = ["#", "blob", "size", "format", "virtual size", "segments", "data", "zeroed", "holes"];
  const rows = report.layers.map((layer, i) => [
    `${i}`,
    layer.name,
    formatBytes(layer.blobBytes),
    `${layer.tar ? "tar/" : ""}${layer.compression}${layer.blockSize ? ` ${layer.blockSize >> 10} KiB` : ""}`,
    formatBytes(layer.virtualSize),
    `${layer.segments}`,
    formatBytes(layer.dataBytes),
    formatBytes(layer.zeroedBytes),
    formatBytes(layer.holeBytes),
  ]);
  const { segments, dataBytes, zeroedBytes, holeBytes } = report.merged;
  const total = report.layers.reduce((sum, layer) => sum + layer.blobBytes, 0);
  const sums = [segments, formatBytes(dataBytes), formatBytes(zeroedBytes), formatBytes(holeBytes)];
  if (rows.length > 1) {
    rows.push(["-", "merged", formatBytes(total), "", formatBytes(report.virtualSize), ...sums.map(String)]);
  }
  const sections = rows.length > 0 ? [formatTable(head, rows)] : [];
  const marks = report.layers.map(({ uuid, parentUuid, userTag }, i) => [
    `${i}`,
    uuid,
    parentUuid,
    JSON.stringify(userTag),
  ]);
  const trees = report.layers.flatMap(({ verity }, i) =>
    verity ? [[`${i}`, verity.root, formatBytes(verity.dataBytes), formatBytes(verity.treeBytes)]] : [],
  );
  if (trees.length > 0) sections.push(formatTable(["#", "verity", "data", "tree"], trees));
  if (marks.length > 0) sections.push(formatTable(["#", "uuid", "parent uuid", "message"], marks));
  if (report.upper) {
    const { kind, data, index, dataBytes: bytes, size, uuid, parentUuid } = report.upper;
    const row = [kind, data, index, formatBytes(bytes), formatBytes(size), uuid, parentUuid];
    sections.push(
      formatTable(["writable", "data", "index", "data size", "virtual size", "uuid", "parent uuid"], [row]),
    );
  }
  return sections.join("\n\n");
}
