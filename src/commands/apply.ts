/** `overlaybd-apply`: unpacks a layer tar into the file system of an image or a plain file (cli.md). */
import { applyToImage, applyToRaw } from "../convert/applied.ts";
import { OverlaybdError } from "../error.ts";
import { imageOptions } from "./_image.ts";
import { defineTool, flag, option, optionOr, positional } from "./_tool.ts";

export const tool = defineTool({
  name: "overlaybd-apply",
  summary: "Unpack a layer tar into the file system of an image",
  arguments: {
    input: positional("input_path", "existing", "tar, tar.gz or tar.zst, or a FIFO that delivers one"),
    target: positional("image_config_path", "existing", "Image config, or the file with --raw"),
    raw: flag(["--raw"], "The target is a plain file or block device"),
    mkfs: flag(["--mkfs"], "Make an ext4 file system first"),
    qcow2: flag(["--from_qcow2"], "The input is a qcow2 disk image"),
    extractRootfs: flag(["--extract-rootfs"], "Take only root file systems from the qcow2", true),
    wholeDisk: flag(["--no-extract-rootfs"], "Take the whole disk from the qcow2"),
    serviceConfig: option(["--service_config_path"], "existing", "Service config"),
    gzipIndex: optionOr(["--gz_index_path"], "text", "", "Write a gzip index, and metadata only (TurboOCI)"),
    checksum: optionOr(["--checksum"], "text", "", "sha256:HEX of the uncompressed input"),
    verbose: flag(["--verbose"], "Say more"),
  },
  async run(args) {
    if (args.qcow2) throw new OverlaybdError("E_UNSUPPORTED", "--from_qcow2 is not supported yet");
    if (args.gzipIndex !== "")
      throw new OverlaybdError("E_UNSUPPORTED", "--gz_index_path is not supported yet");
    const job = { input: args.input, mkfs: args.mkfs, checksum: args.checksum };
    if (args.raw) {
      report(applyToRaw(job, args.target).skippedXattrs);
    } else {
      const options = await imageOptions({ service_config_path: args.serviceConfig });
      report((await applyToImage(job, args.target, options)).skippedXattrs);
    }
    process.stderr.write(`${args.checksum}\n`);
    process.stdout.write("overlaybd-apply done\n");
    return 0;
  },
});

function report(skippedXattrs: readonly string[]): void {
  if (skippedXattrs.length === 0) return;
  process.stderr.write(`overlaybd-apply: ext4 cannot store these attributes: ${skippedXattrs.join(", ")}\n`);
}
