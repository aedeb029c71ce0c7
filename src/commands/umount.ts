/** `overlaybd umount`: ends what `overlaybd mount` began. */
import { resolve } from "node:path";
import { mountPoint, RUN_DIRECTORY } from "../device/mount/record.ts";
import { unmountImage } from "../device/mount/unmount.ts";
import { defineCommand } from "./_command.ts";
import { describeStats } from "./_mount.ts";

export const command = defineCommand({
  meta: {
    name: "umount",
    description: "Unmount an image; returns when everything written is on disk and its server is gone",
  },
  args: {
    directory: { type: "positional", description: "Where it is mounted", required: true },
    json: { type: "boolean", description: "Print JSON", default: false },
    "run-dir": { type: "string", description: "Where running mounts are recorded", default: RUN_DIRECTORY },
  },
  async run({ args }) {
    const directory = await mountPoint(args.directory);
    const stats = await unmountImage(directory, resolve(args["run-dir"]));
    const text = stats ? describeStats(stats) : "its server had died; what was left of it is cleaned up";
    process.stdout.write(`${args.json ? JSON.stringify(stats) : `${directory} is unmounted: ${text}`}\n`);
  },
});
