// MONAI Label's mode for OHIF takes volumes alone. With this, which is loaded before OHIF, it shows single pictures too.
(() => {
  function adapt({ hangingProtocolService, segmentationService }) {
    // the mode's layout is three planes through a volume; a study without one stays black
    const run = hangingProtocolService.run.bind(hangingProtocolService);
    hangingProtocolService.run = (data, protocol, ...rest) => {
      const flat = !data.displaySets.some((displaySet) => displaySet.isReconstructable);
      return run(data, protocol === 'mpr' && flat ? 'default' : protocol, ...rest);
    };
    // the panel writes its labels into a volume; those of a picture are an image
    const getLabelmapVolume = segmentationService.getLabelmapVolume.bind(segmentationService);
    segmentationService.getLabelmapVolume = (id) => {
      const volume = getLabelmapVolume(id);
      const labels = segmentationService.getSegmentation(id)?.representationData?.Labelmap;
      if (volume || labels?.imageIds?.length !== 1) return volume;
      const { voxelManager } = window.cornerstone.cache.getImage(labels.imageIds[0]);
      return {
        voxelManager: {
          getCompleteScalarDataArray: () => voxelManager.getScalarData(),
          setCompleteScalarDataArray: (values) => voxelManager.getScalarData().set(values),
        },
      };
    };
  }
  let services;
  Object.defineProperty(window, 'services', {
    configurable: true,
    get: () => services,
    set(value) {
      services = value;
      adapt(value);
    },
  });
})();
