import { bind } from "./native/library.ts";
console.log(bind({ shim_version: { args: [], returns: "i32" } }).shim_version(), process.env.OVERLAYBD_VERSION);
