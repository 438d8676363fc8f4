//! The kernel program: embedded, loaded, bound to pinned maps.

use std::{
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader,
    programs::{ProgramError, Xdp},
};
use mc_proxy_common::{
    maps::{ABI, MAPS, SETTINGS, Settings},
    user::{self, MapInfo, Table},
};

use super::{
    PlaneError,
    pins::{self, Pins},
};

use crate::xdp::PROGRAM;

/// Symbol of the program in the object.
const SYMBOL: &str = "mc_proxy";

/// Constant of the object: whether the program may ask the kernel for the length of a frame, which Linux 5.18 and later
/// tell. Without it bytes are not counted.
const MEASURES_FRAMES: &str = "MEASURES_FRAMES";

/// Loads the program over the maps pinned in `maps`, making those that are not there.
pub(super) fn load(maps: &Path) -> Result<Ebpf, PlaneError> {
    pins::make(maps)?;
    try_load(maps, true).or_else(|refusal| {
        let ebpf = try_load(maps, false).map_err(|_| refusal)?;
        tracing::info!("this kernel does not tell the length of frames: bytes are not counted");
        Ok(ebpf)
    })
}

fn try_load(maps: &Path, measures_frames: bool) -> Result<Ebpf, PlaneError> {
    let mut loader = EbpfLoader::new();
    let measures_frames = u8::from(measures_frames);
    loader.override_global(MEASURES_FRAMES, &measures_frames, true);
    for shape in MAPS {
        loader.map_pin_path(shape.name, maps.join(shape.name));
    }
    let mut ebpf = loader
        .load(PROGRAM)
        .map_err(|error| PlaneError::caused(format!("making the kernel's maps in {}", maps.display()), error))?;
    program(&mut ebpf)?.load().map_err(explain)?;
    Ok(ebpf)
}

fn explain(error: ProgramError) -> PlaneError {
    if let ProgramError::LoadError { io_error, verifier_log } = error {
        let context = format!("the kernel does not load the XDP program; its verifier says: {verifier_log}");
        return PlaneError::caused(context, io_error);
    }
    PlaneError::caused("loading the XDP program", error)
}

pub(super) fn program(ebpf: &mut Ebpf) -> Result<&mut Xdp, PlaneError> {
    ebpf.program_mut(SYMBOL)
        .ok_or_else(|| PlaneError::new("the embedded object has no XDP program"))?
        .try_into()
        .map_err(|error| PlaneError::caused("the embedded object's program is not XDP", error))
}

/// Where the maps are to be: those in force if they are this version's, or else new ones beside them.
pub(super) fn choose_maps(pins: &Pins) -> Result<PathBuf, PlaneError> {
    pins::remove_directory(&pins.new_maps())?;
    match reusable(&pins.maps()) {
        Ok(()) => Ok(pins.maps()),
        Err(why) => {
            tracing::info!(reason = %why, "the kernel's maps are made anew");
            Ok(pins.new_maps())
        }
    }
}

fn reusable(directory: &Path) -> Result<(), String> {
    for shape in MAPS {
        let map = match user::object(&directory.join(shape.name)) {
            Ok(map) => map,
            // Missing maps are made, and filled before the program sees them.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(format!("{}: {error}", shape.name)),
        };
        let info = MapInfo::of(map.as_fd()).map_err(|error| format!("{}: {error}", shape.name))?;
        if !info.has_shape(&shape) {
            return Err(format!("{} has another shape", shape.name));
        }
        if shape == SETTINGS {
            let settings = Table::<u32, Settings>::new(map.as_fd()).map_err(|error| error.to_string())?;
            let settings = settings.lookup(&0).map_err(|error| error.to_string())?;
            // 0: made, but never filled.
            if let Some(abi) = settings.map(|settings| settings.abi()).filter(|abi| ![0, ABI].contains(abi)) {
                return Err(format!("the maps are of version {abi}, this is {ABI}"));
            }
        }
    }
    Ok(())
}
